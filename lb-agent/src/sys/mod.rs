//! Raw system calls; the only unsafe code of the agent.
