package origintest

import (
	"os/exec"
	"runtime"
)

// startPinned starts cmd from a thread that lives as long as the process does,
// and closes exited when it ended. Pdeathsig fires when the *thread* that forked
// ends, so a thread that the runtime may retire would take the server with it.
func startPinned(cmd *exec.Cmd, exited chan struct{}) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// How it ended is of no interest: Stop asked for it, or awaitHealth and
		// the next request tell.
		_ = cmd.Wait()
		close(exited)
	}()
	return <-started
}
