//! Answers of a flow that was looked at a moment ago are translated by their entry alone.
//!
//! An entry names the forward key, which is all that an answer needs. The record is for what answers change: its time, and
//! its state. So one answer in some seconds is noted there, and marks its entry; those that follow, and say nothing of the
//! connection's end, do not look at the record, whose memory is mostly in no cache. What makes answers matter again takes the
//! mark away: a reset, which they may deny, and a new connection under the old one's record.
//!
//! Answers to a pod itself, to this node, and of flows that are masqueraded towards an endpoint of this node or only change
//! a port always look, as they need to know which of these they are. Of a masqueraded flow's entries only the one of what
//! comes in is marked.

use core::ptr::{NonNull, copy_nonoverlapping, write_volatile};
use lb_ebpf::abi::family::{Family, V4, V6};
use lb_ebpf::abi::flow::{ESTABLISHED, FlowKey, LOCAL_ENDPOINT, MASQUERADE, MASQUERADED, RESET};
use lb_ebpf::abi::settings::Settings;
use lb_ebpf::flow_keys::{write_reply_key, write_returning_key};
use lb_ebpf::noted::{bears_marks, mark};
use lb_ebpf::tcp_state::{is_of_no_account, timeout};

use crate::flow::reply_entry;
use crate::maps::Tables;
use crate::work::Work;

/// Where a reply's entry lies in its table, and the check word of its key. A pointer that is never null, as verifiers before
/// Linux 6.12 do not see that a number beside it says whether it is.
#[derive(Clone, Copy)]
pub(crate) struct Entry<F: Tables> {
    pub(crate) at: NonNull<FlowKey<F>>,
    pub(crate) check: u32,
}

impl<F: Tables> Entry<F> {
    /// Marks the entry of the flow at hand, its answer having been noted, unless answers of this flow want its record. A
    /// reset takes the mark away.
    #[inline(always)]
    pub(crate) fn mark(&self, work: &Work<F>, settings: &Settings, state: u8, now: u32) {
        let (flow, protocol) = (&work.flow, work.network.protocol);
        let flags = flow.flags;
        let plain = if work.reply.scope == MASQUERADED {
            flags == MASQUERADE
        } else {
            flags & !LOCAL_ENDPOINT == 0
        };
        let age = now.saturating_sub(flow.created);
        if plain
            && state == ESTABLISHED
            && bears_marks(protocol, timeout(settings, protocol, ESTABLISHED, age))
        {
            self.set(mark(self.check, &work.forward, now));
        } else if state == RESET {
            self.clear();
        }
    }

    /// Takes the mark away.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        self.set(0);
    }

    #[inline(always)]
    fn set(&self, mark: u16) {
        set_mark(self.at.as_ptr(), mark);
    }
}

/// Sets the mark of an entry; 0: none.
#[inline(always)]
pub(crate) fn set_mark<F: Family>(entry: *mut FlowKey<F>, mark: u16) {
    // SAFETY: callers give an element of the table. If it was reused, the mark does not fit what it is now.
    unsafe { write_volatile(&raw mut (*entry).noted, mark) };
}

impl<F: Tables> Work<F> {
    /// Whether the answer at hand, under `reply`, needs no record; then `forward` is its flow's key.
    #[inline(always)]
    pub(crate) fn recalls(&mut self, entry: &Entry<F>, now: u32) -> bool {
        if !is_of_no_account(self.network.protocol, self.transport.flags) {
            return false;
        }
        // SAFETY: an element of the table; whether the copy is whole shows in the mark.
        unsafe { copy_nonoverlapping(entry.at.as_ptr(), &raw mut self.forward, 1) };
        let noted = self.forward.noted;
        self.forward.noted = 0;
        noted == mark(entry.check, &self.forward, now)
    }

    /// Takes the marks of the flow at hand away. `reply` is overwritten.
    #[inline(always)]
    fn forget_answers(&mut self) {
        write_reply_key(&mut self.reply, &self.flow, &self.key);
        if let Some(entry) = reply_entry(&self.reply) {
            entry.clear();
        }
        if self.flow.flags & MASQUERADE != 0 {
            write_returning_key(&mut self.reply, &self.flow, &self.key);
            if let Some(entry) = reply_entry(&self.reply) {
                entry.clear();
            }
        }
    }
}

/// Takes the marks of the flow at hand away: a function that the verifier looks at once, not wherever it is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn forget_answers4() -> u32 {
    V4::work().map(Work::forget_answers).is_some().into()
}

/// As its sister.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn forget_answers6() -> u32 {
    V6::work().map(Work::forget_answers).is_some().into()
}

/// Calls the family's.
#[inline(always)]
pub(crate) fn forget_answers<F: Tables>() {
    if F::VERSION == 4 {
        forget_answers4();
    } else {
        forget_answers6();
    }
}
