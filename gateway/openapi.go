package gateway

import (
	_ "embed"
	"net/http"
)

// openAPI describes every call below /api/v1. A test holds it against the routes
// and against the types.
//
//go:embed openapi.yaml
var openAPI []byte

func addOpenAPI(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		writeBody(w, http.StatusOK, "application/yaml", openAPI)
	})
}
