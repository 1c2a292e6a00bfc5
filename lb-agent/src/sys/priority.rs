//! Who goes first where processors are scarce.

use std::io;

/// Lets others go before this thread by so much niceness, and those threads that it starts.
pub fn yield_to_others(niceness: i32) -> io::Result<()> {
    // The calling thread: of a process's threads each has its own on Linux, whatever POSIX says.
    const THIS_THREAD: libc::id_t = 0;
    // SAFETY: takes numbers alone.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD, niceness) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::yield_to_others;

    fn niceness() -> i32 {
        // SAFETY: takes numbers alone.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn a_thread_that_yields_leaves_the_others_as_they_are() {
        let before = niceness();
        let yielding = std::thread::spawn(|| {
            yield_to_others(19).unwrap();
            (niceness(), std::thread::spawn(niceness).join().unwrap())
        });
        assert_eq!(yielding.join().unwrap(), (19, 19));
        assert_eq!(niceness(), before);
    }
}
