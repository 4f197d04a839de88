package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// reply writes the outcome of one call.
func reply(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		writeError(w, statusOf(err), oneLine(err.Error()))
		return
	}
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, err := json.Marshal(answer)
	if err != nil {
		writeError(w, http.StatusInternalServerError, fmt.Sprintf("encode the answer: %v", err))
		return
	}
	writeBody(w, http.StatusOK, "application/json", append(body, '\n'))
}

func writeError(w http.ResponseWriter, status int, line string) {
	body, err := json.Marshal(errorBody{Error: oneLine(line)})
	if err != nil { // a string always encodes
		panic(err)
	}
	writeBody(w, status, "application/json", append(body, '\n'))
}

func writeText(w http.ResponseWriter, status int, line string) {
	writeBody(w, status, "text/plain; charset=utf-8", []byte(line+"\n"))
}

// writeBody sends one whole answer. Nothing here may be cached, nor read as
// another type than it says: a file name in an error is somebody else's text.
func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	head := w.Header()
	head.Set("Content-Type", contentType)
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone; there is nobody left to tell
}
