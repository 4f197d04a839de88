package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"unicode"

	"github.com/covey-cache/covey"
)

// kinds pairs each error kind with the HTTP status that carries it, in both
// directions, so that a kind survives the trip through the API. No status
// stands for two kinds.
var kinds = []struct {
	kind   error
	status int
}{
	{covey.ErrNotFound, http.StatusNotFound},
	{covey.ErrInvalid, http.StatusBadRequest},
	{covey.ErrDenied, http.StatusForbidden},
	{covey.ErrStale, http.StatusConflict},
	{covey.ErrThrottled, http.StatusTooManyRequests},
	{covey.ErrReadOnly, http.StatusLocked},
	{covey.ErrCorrupt, http.StatusBadGateway},
	{covey.ErrUnavailable, http.StatusServiceUnavailable},
	{covey.ErrFull, http.StatusInsufficientStorage},
}

// statusOf returns the HTTP status for an error of the agent. An error without
// a kind is 500.
func statusOf(err error) int {
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return k.status
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// kindOf is the inverse of statusOf; nil when the status stands for no kind.
func kindOf(status int) error {
	for _, k := range kinds {
		if k.status == status {
			return k.kind
		}
	}
	switch status {
	case http.StatusGatewayTimeout:
		return covey.ErrUnavailable
	case http.StatusRequestEntityTooLarge, http.StatusMethodNotAllowed:
		return covey.ErrInvalid
	}
	return nil
}

// ResponseError is what an agent answered instead of a result. It wraps the
// covey error kind that its status stands for, if any.
type ResponseError struct {
	Status  int    // the HTTP status
	Message string // one line, as the agent said it
}

func (e *ResponseError) Error() string { return e.Message }

// Unwrap returns the covey error kind, or nil.
func (e *ResponseError) Unwrap() error { return kindOf(e.Status) }

// errorBody is the JSON of every answer that is not a success.
type errorBody struct {
	Error string `json:"error"`
}

// maxErrorLine is the longest error line sent: names may be 4 KiB, and two of
// them with a sentence around still fit.
const maxErrorLine = 10 << 10

// oneLine makes text fit for one line of a terminal: control characters become
// spaces, so that a file name in an error cannot forge a second line.
func oneLine(text string) string {
	if len(text) > maxErrorLine {
		text = text[:maxErrorLine]
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	return strings.TrimSpace(text)
}
