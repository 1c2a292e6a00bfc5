//! What the system lets this process have.

use std::io;

/// Lets the process have as many descriptors as its owner allows it to ask for; how many that is. Many systems start with
/// 1,024, for the sake of programs that use `select`: each inner table and each name that is kept takes one.
pub fn raise_descriptors() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is readable.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::raise_descriptors;

    #[test]
    fn what_is_allowed_is_had_and_asking_twice_changes_nothing() {
        let raised = raise_descriptors().unwrap();
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is writable.
        let answer = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        assert_eq!(answer, 0);
        assert_eq!((limit.rlim_cur, limit.rlim_max), (raised, raised));
        assert_eq!(raise_descriptors().unwrap(), raised);
    }
}
