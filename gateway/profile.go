package gateway

import (
	"context"
	"net"
	"net/http"
	"net/http/pprof"
)

// listenerKey is where [Serve] leaves the listener's address for the handler.
type listenerKey struct{}

func withListener(ctx context.Context, l net.Listener) context.Context {
	return context.WithValue(ctx, listenerKey{}, l.Addr())
}

// addProfiles adds /debug/pprof. A profile shows command lines and memory
// contents and costs CPU, so it is for this host only.
func (h *handler) addProfiles(mux *http.ServeMux) {
	add := func(path string, f http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !h.socket && !fromThisHost(r) {
				writeError(w, http.StatusForbidden,
					"profiles are served on the agent's socket and on loopback listeners only")
				return
			}
			f(w, r)
		})
	}
	add("/debug/pprof/", pprof.Index)
	add("/debug/pprof/cmdline", pprof.Cmdline)
	add("/debug/pprof/profile", pprof.Profile)
	add("/debug/pprof/symbol", pprof.Symbol)
	add("/debug/pprof/trace", pprof.Trace)
}

// fromThisHost says whether the request came in on a listener that only this
// host reaches, by a name that means this host. The second half keeps a web
// page out whose own name was pointed at 127.0.0.1.
func fromThisHost(r *http.Request) bool {
	addr, ok := r.Context().Value(listenerKey{}).(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
