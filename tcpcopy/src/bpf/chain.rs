//! The chains of TCX programs that ours are in: those of others may come before ours, and end the chain; or behind
//! ours, and change the addresses of what leaves.

use std::collections::HashMap;

use aya::programs::{SchedClassifier, TcAttachType, tc::SchedClassifierLink};

use super::{
    BpfError,
    error::patiently,
    intercept::{Hook, Interceptor, Reach, reached},
    names::{map, program},
    object::Object,
    sys, tc,
};
use crate::net::{NetError, interface};

/// A chain takes a program only once: so there is each twice, and one of them is there before the other goes. (And those
/// of egress once more, for the end of the chain.)
const PAIRS: [(&str, &str); 4] = [
    (program::LEARN, program::LEARN_AGAIN),
    (program::LEARN_L3, program::LEARN_L3_AGAIN),
    (program::SWALLOW_TCX, program::SWALLOW_TCX_AGAIN),
    (program::SWALLOW_TCX_L3, program::SWALLOW_TCX_L3_AGAIN),
];

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const INGRESS: u32 = 46;
const EGRESS: u32 = 47;

/// What was done about programs of others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mended {
    /// One had come before ours, which is the first again. What came by meanwhile may have been hidden from it.
    Overtaken {
        /// The interface.
        interface: String,
        /// "ingress" or "egress".
        direction: &'static str,
    },
    /// Some come behind ours at egress, where ours is now once more, at the end.
    Followed {
        /// The interface.
        interface: String,
    },
    /// Ours at the end sees nothing of what the interface sends: one of those before it ends the chain. Nothing helps.
    Ended {
        /// The interface.
        interface: String,
    },
}

impl Interceptor {
    /// Looks whether ours are where they have to be in all chains: at the head, and at egress also at the end where
    /// there are programs of others. Puts them there if not, and says what it did, or what it could not do.
    pub fn mend_chains(&mut self) -> Vec<Result<Mended, BpfError>> {
        if !self.tcx {
            return Vec::new();
        }
        let indices: Vec<u32> = self.hooks.keys().copied().collect();
        let mut mended = Vec::new();
        for ifindex in indices {
            for step in [Self::mend_ingress, Self::mend_egress, Self::mend_end] {
                match step(self, ifindex) {
                    Ok(done) => mended.extend(done.map(Ok)),
                    // It is gone, or goes.
                    Err(BpfError::Net(NetError::NoInterface { .. })) => {}
                    Err(error) => mended.push(Err(error)),
                }
            }
        }
        match self.ended_chains() {
            Ok(ended) => mended.extend(ended.into_iter().map(Ok)),
            Err(error) => mended.push(Err(error)),
        }
        mended
    }

    /// Finds chains that are ended before our program at their end: none of what the interface has sent since the last
    /// look has come there.
    fn ended_chains(&mut self) -> Result<Vec<Mended>, BpfError> {
        /// Fewer may have been sent past the chain, as packet sockets can.
        const ENOUGH: u64 = 8;
        if self.hooks.values().all(|hooks| hooks.last.is_none()) {
            return Ok(Vec::new());
        }
        let before = self.reached()?;
        let sent = interface::sent_packets()?;
        // Whatever was sent by then has been counted here.
        let after = self.reached()?;
        let mut ended = Vec::new();
        for (ifindex, hooks) in self.hooks.iter_mut().filter(|(_, hooks)| hooks.last.is_some()) {
            let (Some(&before), Some(&after), Some((name, sent))) =
                (before.get(ifindex), after.get(ifindex), sent.get(ifindex))
            else {
                continue;
            };
            let last = hooks.reach.replace(Reach { reached: before, sent: *sent });
            if last.is_some_and(|last| after == last.reached && sent.wrapping_sub(last.sent) >= ENOUGH) {
                ended.push(Mended::Ended { interface: name.clone() });
            }
        }
        Ok(ended)
    }

    /// Returns what has come to the ends of chains, by interface.
    fn reached(&mut self) -> Result<HashMap<u32, u64>, BpfError> {
        reached(&mut self.object)?.iter().collect::<Result<_, _>>().map_err(BpfError::read(map::REACHED))
    }

    fn mend_ingress(&mut self, ifindex: u32) -> Result<Option<Mended>, BpfError> {
        let Self { hooks, object, .. } = self;
        let Some(learn) = hooks.get_mut(&ifindex).and_then(|hooks| hooks.learn.as_mut()) else { return Ok(None) };
        if chain(ifindex, INGRESS)?.first() == Some(&learn.id) {
            return Ok(None);
        }
        let interface = interface::by_index(ifindex)?.name;
        *learn = put(object, other(learn.name), &interface, TcAttachType::Ingress, tc::attach_tcx)?;
        Ok(Some(Mended::Overtaken { interface, direction: "ingress" }))
    }

    fn mend_egress(&mut self, ifindex: u32) -> Result<Option<Mended>, BpfError> {
        let Self { hooks, object, .. } = self;
        let Some(hooks) = hooks.get_mut(&ifindex) else { return Ok(None) };
        let Some(swallow) = hooks.swallow.as_mut() else { return Ok(None) };
        if chain(ifindex, EGRESS)?.first() == Some(&swallow.id) {
            return Ok(None);
        }
        let interface = interface::by_index(ifindex)?.name;
        *swallow = put(object, other(swallow.name), &interface, TcAttachType::Egress, tc::attach_tcx)?;
        Ok(Some(Mended::Overtaken { interface, direction: "egress" }))
    }

    fn mend_end(&mut self, ifindex: u32) -> Result<Option<Mended>, BpfError> {
        let Self { hooks, object, .. } = self;
        let Some(hooks) = hooks.get_mut(&ifindex) else { return Ok(None) };
        let Some(swallow) = hooks.swallow.as_ref() else { return Ok(None) };
        let chain = chain(ifindex, EGRESS)?;
        let last = hooks.last.as_ref().map(|last| last.id);
        if chain.iter().all(|id| *id == swallow.id || Some(*id) == last) {
            if hooks.last.take().is_some() {
                // That it is not there is just as well.
                let _ = reached(object)?.remove(&ifindex);
            }
            return Ok(None);
        }
        if last.is_some() && chain.last() == last.as_ref() {
            return Ok(None);
        }
        let interface = interface::by_index(ifindex)?.name;
        (hooks.last, hooks.reach) = (None, None);
        reached(object)?.insert(ifindex, 0, 0).map_err(BpfError::write(map::REACHED))?;
        hooks.last = Some(put(object, at_end(swallow.name), &interface, TcAttachType::Egress, tc::attach_tcx_last)?);
        Ok(Some(Mended::Followed { interface }))
    }
}

/// The same program by its other name.
fn other(name: &'static str) -> &'static str {
    PAIRS.iter().find_map(|&(a, b)| if name == a { Some(b) } else { (name == b).then_some(a) }).unwrap_or(name)
}

/// The same program for the end of the chain.
fn at_end(name: &str) -> &'static str {
    match name {
        program::SWALLOW_TCX_L3 | program::SWALLOW_TCX_L3_AGAIN => program::SWALLOW_TCX_L3_LAST,
        _ => program::SWALLOW_TCX_LAST,
    }
}

fn chain(ifindex: u32, direction: u32) -> Result<Vec<u32>, BpfError> {
    patiently(|| sys::tcx_chain(ifindex, direction)).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => NetError::NoInterface { name: format!("number {ifindex}") }.into(),
        _ => BpfError::Chain { source },
    })
}

type Attach = fn(&mut SchedClassifier, &'static str, &str, TcAttachType) -> Result<SchedClassifierLink, BpfError>;

/// Attaches a program of this name.
fn put(
    object: &mut Object,
    name: &'static str,
    interface: &str,
    direction: TcAttachType,
    attach: Attach,
) -> Result<Hook, BpfError> {
    Hook::attach(object, name, |program| attach(program, name, interface, direction))
}
