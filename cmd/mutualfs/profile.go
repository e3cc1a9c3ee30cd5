package main

import (
	"net/http"
	"net/http/pprof"
)

// handleProfiles lets whoever may use the control socket look into the running process with the standard profiles of Go:
//
//	curl --unix-socket DIR/control.sock 'http://control/debug/pprof/profile?seconds=10' >cpu
//	go tool pprof -top cpu
func handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
