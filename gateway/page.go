package gateway

import (
	"embed"
	"net/http"
)

// page holds the status page: three files that ask this agent and nobody else.
//
//go:embed page
var page embed.FS

// addPage adds the status page at exactly "/", with its style and script.
func addPage(mux *http.ServeMux) {
	for path, file := range map[string]struct{ name, contentType string }{
		"GET /{$}":      {"page/index.html", "text/html; charset=utf-8"},
		"GET /page.css": {"page/page.css", "text/css; charset=utf-8"},
		"GET /page.js":  {"page/page.js", "text/javascript; charset=utf-8"},
	} {
		body, err := page.ReadFile(file.name)
		if err != nil { // embedded at build time
			panic(err)
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			// Names of mounts and peers come from other machines: the policy
			// keeps a forged one from loading or sending anything.
			w.Header().Set("Content-Security-Policy",
				"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
			writeBody(w, http.StatusOK, file.contentType, body)
		})
	}
}
