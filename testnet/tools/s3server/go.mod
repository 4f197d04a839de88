module github.com/covey-cache/covey/testnet/tools/s3server

go 1.26
