//! `cargo xtask demo`: see `lb_tests::demo`.

use std::io::{self, IsTerminal as _};
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::{env, process, ptr, thread};

use lb_tests::demo::{self, Screen};
use lb_tests::{peer, scope, traffic};

fn main() -> ExitCode {
    let outcome = if env::args()
        .nth(1)
        .is_some_and(|argument| argument == traffic::PEER_ARGUMENT)
    {
        peer::run()
    } else {
        clean_up_when_interrupted();
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        demo::run(&mut Screen::new(io::stdout(), colours))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C ends the demo at any moment and still removes all it made.
fn clean_up_when_interrupted() {
    let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the other calls then use. No other thread exists yet, so all
    // threads inherit the mask; `Place::command` clears it for child processes.
    let signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), ptr::null_mut());
        signals.assume_init()
    };
    thread::spawn(move || {
        let mut number = 0;
        // SAFETY: both pointers are valid for the call.
        unsafe { libc::sigwait(&raw const signals, &raw mut number) };
        if let Err(error) = scope::remove_own() {
            eprintln!("cleaning up: {error:#}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "what destructors would remove is removed, and the main thread may be waiting for good"
        )]
        process::exit(128 + number);
    });
}
