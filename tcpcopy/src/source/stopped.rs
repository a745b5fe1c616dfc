//! Targets to which nothing is sent, because what goes there is not seen or not answered: told once, however many
//! workers find it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use tcpcopy_replay::{Fault, FuseEvent};

use crate::finding::Finding;

/// How often the log has the same of a target.
const REPEAT: Duration = Duration::from_secs(60);

/// Who has found something: a worker, and its copy.
pub(super) type Finder = (u32, usize);

/// What workers have found out about targets.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    faults: BTreeMap<SocketAddr, HashMap<Finder, Fault>>,
    told: HashMap<(SocketAddr, Option<Fault>), Instant>,
}

/// What follows from an event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct News {
    /// For the log.
    pub finding: Option<Finding>,
    /// For all workers.
    pub order: Option<FuseEvent>,
}

impl Stopped {
    /// Notes what has become of a fuse; returns what is news.
    pub(super) fn note(&mut self, finder: Finder, event: FuseEvent, now: Instant) -> News {
        let target = event.target;
        let faults = self.faults.entry(target).or_default();
        let before = faults.len();
        match event.fault {
            Some(fault) => {
                let is_new = !faults.values().any(|known| *known == fault);
                faults.insert(finder, fault);
                // Others may not have proved their way yet, but what is true of SYNs is true of those of all.
                let order = (is_new && fault != Fault::ProbeUnseen).then_some(event);
                let finding = (is_new && self.may_tell(target, Some(fault), now)).then(|| stopped(target, fault));
                News { finding, order }
            }
            None => {
                // Who has a response has one for all; who has proved a way, only its own.
                let was = faults.remove(&finder);
                let count = faults.len();
                faults.retain(|_, fault| *fault == Fault::ProbeUnseen);
                let follow = count > faults.len() || was.is_some_and(|fault| fault != Fault::ProbeUnseen);
                let is_over = before > 0 && faults.is_empty();
                let finding = (is_over && self.may_tell(target, None, now)).then(|| {
                    Finding::info(format!("{target} is replayed to from now on: intercept sees what is sent there"))
                });
                News { finding, order: follow.then_some(event) }
            }
        }
    }

    fn may_tell(&mut self, target: SocketAddr, fault: Option<Fault>, now: Instant) -> bool {
        let last = self.told.insert((target, fault), now);
        let may = last.is_none_or(|last| now.duration_since(last) >= REPEAT);
        if let (false, Some(last)) = (may, last) {
            self.told.insert((target, fault), last);
        }
        may
    }

    /// Returns what is to be said of the targets to which nothing is sent now.
    pub(super) fn reminders(&self) -> impl Iterator<Item = Finding> {
        self.faults.iter().filter_map(|(target, faults)| faults.values().next().map(|fault| stopped(*target, *fault)))
    }
}

/// Finds that nothing is replayed to a target.
fn stopped(target: SocketAddr, fault: Fault) -> Finding {
    match fault {
        Fault::ProbeUnseen => Finding::warning(format!(
            "nothing is replayed to {target}: intercept does not see what is sent there, so that answers would go to \
             the real clients"
        ))
        .because(
            "no host of -s has this address (it is unused, another host's, or a load balancer's), packets come in \
             there by an interface that intercept's -i does not name, or something on the way drops or changes them",
        )
        .remedy(
            "name in -x an address of the test host itself, and its intercept in -s; the replay begins by itself when \
             intercept sees probes",
        ),
        Fault::SynsUnseen => Finding::warning(format!(
            "nothing more is replayed to {target}: intercept sees packets from this host, but none of the SYNs that \
             were sent from clients' addresses"
        ))
        .because(
            "a switch, router, firewall or cloud on the way drops packets with foreign source addresses, or a load \
             balancer takes them to another host",
        )
        .remedy(
            "let the network pass them, or give the clients an address of this host (-c); then start tcpcopy or \
             intercept again",
        ),
        Fault::Unanswered => Finding::warning(format!(
            "nothing more is replayed to {target}: intercept has let SYNs in, and has seen no answer to any of them"
        ))
        .because(
            "a firewall or the reverse-path filter of the test host drops them, it has no route to the clients, or its \
             answers leave where intercept does not see them",
        )
        .remedy(
            "on the test host, look at `nft list ruleset`, `sysctl net.ipv4.conf.all.rp_filter` and `ip route get \
             CLIENT`; then start tcpcopy or intercept again",
        ),
        Fault::AnswersUnseen => Finding::warning(format!(
            "nothing more is replayed to {target}: the service has answered SYNs, and intercept has not seen that, so \
             that answers may have gone to the real clients"
        ))
        .because(
            "on the test host, another program is ahead of intercept's or has removed it, answers leave in a tunnel, \
             or its firewall drops them, or it does not find the way to the clients (neighbour, route)",
        )
        .remedy(
            "there, look at `bpftool net`, `ip route get CLIENT`, `ip neigh` and `nft list ruleset`; then start \
             intercept again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(target: &str, fault: Option<Fault>) -> FuseEvent {
        FuseEvent { target: target.parse().unwrap(), fault }
    }

    #[test]
    fn a_target_is_told_of_once_and_again_when_all_workers_are_well() {
        let (mut stopped, now) = (Stopped::default(), Instant::now());
        let mut note = |worker, event| stopped.note((worker, 0), event, now);
        assert_eq!(note(0, event("10.0.0.3:80", None)), News::default(), "as it should be");
        let unseen = Some(Fault::ProbeUnseen);
        let News { finding, order } = note(1, event("10.0.0.3:80", unseen));
        assert!(order.is_none(), "the others may see theirs");
        assert!(finding.unwrap().what.contains("10.0.0.3:80"));
        assert_eq!(note(0, event("10.0.0.3:80", unseen)), News::default());
        assert!(note(0, event("[fd00::3]:80", unseen)).finding.is_some());
        assert_eq!(note(1, event("10.0.0.3:80", None)), News::default(), "the other worker is not well");
        assert!(note(0, event("10.0.0.3:80", None)).finding.unwrap().what.contains("is replayed to"));
        assert_eq!(note(0, event("10.0.0.3:80", None)), News::default());
    }

    #[test]
    fn what_one_worker_finds_out_about_syns_stops_all_and_a_response_to_one_lets_all_go_on() {
        let (mut stopped, now) = (Stopped::default(), Instant::now());
        let mut note = |worker, fault, after| {
            stopped.note((worker, 0), event("10.0.0.3:80", fault), now + Duration::from_secs(after))
        };
        for fault in [Fault::SynsUnseen, Fault::Unanswered, Fault::AnswersUnseen] {
            let blown = event("10.0.0.3:80", Some(fault));
            let News { finding, order } = note(0, Some(fault), 0);
            assert_eq!((finding.is_some(), order), (true, Some(blown)), "{fault:?}");
            assert_eq!(note(1, Some(fault), 0), News::default(), "{fault:?}");
            assert_eq!(note(2, None, 0).order, Some(event("10.0.0.3:80", None)), "{fault:?}");
            // It comes and goes: the log has it once a minute.
            assert_eq!(note(0, Some(fault), 59), News { finding: None, order: Some(blown) });
            assert_eq!(note(0, None, 59).finding, None);
            assert!(note(0, Some(fault), 60).finding.is_some());
            note(0, None, 60);
        }
    }

    #[test]
    fn each_fault_has_its_own_words_and_a_remedy() {
        let faults = [Fault::ProbeUnseen, Fault::SynsUnseen, Fault::Unanswered, Fault::AnswersUnseen];
        let found = faults.map(|fault| super::stopped("[fd00::3]:80".parse().unwrap(), fault));
        assert!(found.iter().all(|found| found.why.is_some() && found.remedy.is_some()));
        let texts = found.map(|found| found.to_string());
        assert!(texts.iter().enumerate().all(|(i, text)| text.contains("[fd00::3]:80") && !texts[..i].contains(text)));
    }
}
