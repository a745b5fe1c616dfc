//! The source's side: capturing the segments of live clients.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use aya::{
    maps::{Array, ArrayOfMaps, HashMap, MapData, MapError},
    programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, tc::SchedClassifierLink},
};
use rustix::io::Errno;
use tcpcopy_common::{
    capture::{HANDSHAKE_SLOTS, MAX_WORKERS, Rule, RuleKey, criterion},
    counters::CaptureCounter,
    flow::IpAddress,
};
use tcpcopy_replay::Checksums;

use super::{
    BpfError, ClientFilter, CounterValues, ProgramLogger, RingReader,
    error::patiently,
    names::{
        global, map,
        program::{ANSWER_TC, ANSWER_TC_L3, CAPTURE_TC, CAPTURE_TC_L3, CAPTURE_XDP},
    },
    object::{Object, Side},
    refusal::refusal,
    ring::{SignalPage, ring_size},
    selection::{Sampling, Share},
    stacking, sys, tc,
};
use crate::net::{
    NetError,
    interface::{self, Interface, interfaces},
};

/// Where on a packet's way in it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The one that cannot disturb live traffic: TC ingress. (Attaching XDP makes most drivers reset their rings or
    /// switch off offloads, and none is known well enough to be an exception.)
    Auto,
    /// XDP in the driver.
    Xdp,
    /// XDP in the stack, for tests: it linearises every packet.
    XdpGeneric,
    /// TC ingress.
    Tc,
}

/// One service whose clients are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRule {
    /// Comes back as [`LiveSegment::rule`](tcpcopy_replay::LiveSegment::rule).
    pub id: u16,
    /// The service's address; `None` is any.
    pub address: Option<IpAddr>,
    /// The service's port.
    pub port: u16,
}

/// What to capture, and where.
#[derive(Clone, Copy, Debug)]
pub struct CaptureSetup<'a> {
    /// The services. A rule that names an address goes before one of the same port that does not.
    pub rules: &'a [CaptureRule],
    /// Services not to capture, although a rule matches them.
    pub exclude: &'a [SocketAddr],
    /// Which clients; all of them when `None`.
    pub clients: Option<&'a ClientFilter>,
    /// Which part of the connections; all of them when `None`.
    pub sampling: Option<Sampling>,
    /// Whether the acknowledgement that ends a client's handshake is captured too, the only kind without payload.
    pub handshakes: bool,
    /// Whether frames for other hosts are captured too, as on a mirror port.
    pub promiscuous: bool,
    /// How many workers, and so rings: 1 to [`MAX_WORKERS`].
    pub workers: u32,
    /// The size of each ring, in bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Names of the interfaces to capture on.
    pub interfaces: &'a [String],
    /// Where to capture.
    pub hook: Hook,
    /// Whether the programs log.
    pub debug: bool,
}

/// Where a program was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// "tc ingress", "xdp native" or "xdp generic".
    pub hook: &'static str,
}

/// The capture programs, loaded. Dropping this detaches them.
pub struct Capture {
    // Fields drop in this order: first detach, then give up maps and programs.
    links: Vec<CaptureLink>,
    object: Object,
    plan: Vec<Plan>,
}

/// A program, and the interface that it is attached to.
struct Plan {
    interface: Interface,
    program: CaptureProgram,
}

impl Plan {
    /// The program that looks at what leaves, whatever looks at what comes in: XDP sees nothing leave.
    fn answers(&self) -> &'static str {
        if self.interface.has_ethernet_header() { ANSWER_TC } else { ANSWER_TC_L3 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CaptureProgram {
    Tc(&'static str),
    Xdp { flags: u32, mode: &'static str, hook: &'static str },
}

/// What keeps a program attached; each detaches when it is dropped.
#[expect(dead_code, reason = "held for their Drop")]
enum CaptureLink {
    Xdp(OwnedFd),
    Tcx(SchedClassifierLink),
    Clsact { filters: Vec<SchedClassifierLink>, qdisc: tc::Qdisc },
}

impl Capture {
    /// Makes maps, rings and programs. Nothing is attached yet; the readers are in the order of the workers.
    ///
    /// # Errors
    /// Any of [`BpfError`] but [`Attach`](BpfError::Attach).
    pub fn load(setup: &CaptureSetup<'_>) -> Result<(Self, Vec<RingReader>), BpfError> {
        if setup.workers == 0 || setup.workers > MAX_WORKERS {
            return Err(BpfError::Workers { workers: setup.workers, max: MAX_WORKERS });
        }
        let rules = Rules::new(setup.rules, setup.exclude)?;
        let plan = plan(setup.interfaces, setup.hook)?;
        let criteria = setup.clients.map_or(0, |_| criterion::CLIENT) | setup.sampling.map_or(0, |_| criterion::SAMPLE);
        let seed = setup.sampling.map_or(0, |sampling| sampling.seed);

        let handshakes = u32::from(setup.handshakes);
        let promiscuous = u32::from(setup.promiscuous);

        let mut object = Object::load(Side::Capture, setup.debug, |loader| {
            loader
                .override_global(global::CAPTURE_WORKERS, &setup.workers, true)
                .override_global(global::CAPTURE_CRITERIA, &criteria, true)
                .override_global(global::SAMPLE_SEED, &seed, true)
                .override_global(global::CAPTURE_HANDSHAKES, &handshakes, true)
                .override_global(global::CAPTURE_PROMISCUOUS, &promiscuous, true)
                .map_max_entries(map::HANDSHAKES, if setup.handshakes { HANDSHAKE_SLOTS } else { 1 })
                .map_max_entries(map::ADDRESSES, (rules.addresses.len() as u32).max(1))
                .map_max_entries(map::CLIENTS, setup.clients.map_or(1, ClientFilter::len));
        })?;
        rules.write(&mut object)?;
        if let Some(clients) = setup.clients {
            clients.write(&mut object)?;
        }
        if let Some(sampling) = setup.sampling {
            sampling.share.write(&mut object)?;
        }
        let readers = make_rings(&mut object, setup.workers, ring_size(setup.ring_bytes))?;
        for plan in &plan {
            load_program(&mut object, plan.program)?;
            load_program(&mut object, CaptureProgram::Tc(plan.answers()))?;
        }
        Ok((Self { links: Vec::new(), object, plan }, readers))
    }

    /// Attaches to all interfaces, or to none when one of them refuses.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::Permission`] or one of the `Xdp` kind.
    pub fn attach(&mut self) -> Result<Vec<Attachment>, BpfError> {
        let mut links = Vec::with_capacity(self.plan.len());
        let mut attachments = Vec::with_capacity(self.plan.len());
        for plan in &self.plan {
            let Plan { interface, program } = plan;
            // First of all, so that no handshake is captured whose SYN-ACK was not seen.
            let answers = (plan.answers(), TcAttachType::Egress);
            let hook = match *program {
                CaptureProgram::Tc(name) => {
                    links.extend(attach_tc(&mut self.object, &[answers, (name, TcAttachType::Ingress)], interface)?);
                    "tc ingress"
                }
                CaptureProgram::Xdp { flags, mode, hook } => {
                    links.extend(attach_tc(&mut self.object, &[answers], interface)?);
                    links.push(attach_xdp(&mut self.object, flags, mode, interface)?);
                    hook
                }
            };
            attachments.push(Attachment { interface: interface.name.clone(), hook });
        }
        self.links = links;
        Ok(attachments)
    }

    /// Detaches: nothing is captured any more, and what is in the rings stays there to be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// Changes the share of connections that is copied, if there is sampling at all. A connection that was copied stays
    /// so when the share grows; of one that was not, the rest is copied from then on when the share has reached it.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_share(&mut self, share: Share) -> Result<(), BpfError> {
        share.write(&mut self.object)
    }

    /// Whether what was captured can have checksums that are still to be completed.
    pub fn checksums(&self) -> Checksums {
        let complete = self.plan.iter().all(|plan| plan.interface.is_network_card());
        if complete { Checksums::Complete } else { Checksums::Partial }
    }

    /// What the programs have counted so far.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn counters(&self) -> Result<CounterValues<CaptureCounter>, BpfError> {
        CounterValues::of(&self.object, map::CAPTURE_COUNTERS)
    }

    /// The programs' log: `None` unless `debug` was set, or the second time.
    pub fn logger(&mut self) -> Option<ProgramLogger> {
        self.object.logger()
    }

    #[cfg(test)]
    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }
}

/// Decides which program goes to which interface.
fn plan(names: &[String], hook: Hook) -> Result<Vec<Plan>, BpfError> {
    let all = interfaces()?;
    let chosen = names.iter().map(|name| interface::named(&all, name)).collect::<Result<Vec<_>, _>>()?;
    stacking::refuse(&all, &chosen)?;
    chosen
        .into_iter()
        .map(|interface| {
            let program = match hook {
                Hook::Auto | Hook::Tc if interface.has_ethernet_header() => CaptureProgram::Tc(CAPTURE_TC),
                Hook::Auto | Hook::Tc => CaptureProgram::Tc(CAPTURE_TC_L3),
                Hook::Xdp | Hook::XdpGeneric if !interface.has_ethernet_header() => {
                    return Err(BpfError::XdpNotEthernet { interface: interface.name.clone() });
                }
                Hook::Xdp => CaptureProgram::Xdp { flags: sys::XDP_FLAGS_DRV_MODE, mode: "native", hook: "xdp native" },
                Hook::XdpGeneric => {
                    CaptureProgram::Xdp { flags: sys::XDP_FLAGS_SKB_MODE, mode: "generic", hook: "xdp generic" }
                }
            };
            Ok(Plan { interface: interface.clone(), program })
        })
        .collect()
}

fn load_program(object: &mut Object, program: CaptureProgram) -> Result<(), BpfError> {
    let (name, result) = match program {
        CaptureProgram::Tc(name) => {
            let program = object.program::<SchedClassifier>(name)?;
            (name, patiently(|| program.load()))
        }
        CaptureProgram::Xdp { .. } => {
            let program = object.program::<Xdp>(CAPTURE_XDP)?;
            (CAPTURE_XDP, patiently(|| program.load()))
        }
    };
    match result {
        // Two interfaces with the same program.
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(refusal(name, &error)),
    }
}

/// Makes one ring per worker and puts it where the programs look for it.
fn make_rings(object: &mut Object, workers: u32, bytes: u32) -> Result<Vec<RingReader>, BpfError> {
    let signals = SignalPage::new(object.map_fd(map::SIGNALS)?, MAX_WORKERS)?;
    let mut rings: ArrayOfMaps<&mut MapData> =
        object.map_mut(map::CAPTURE_RINGS)?.try_into().map_err(BpfError::write(map::CAPTURE_RINGS))?;
    (0..workers)
        .map(|worker| {
            let ring = patiently(|| sys::create_ring(bytes)).map_err(|error| BpfError::ring(bytes, error))?;
            let reader = ring.try_clone().map_err(|error| BpfError::ring(bytes, error))?;
            let ring = || ring.try_clone().map_err(MapError::IoError).and_then(MapData::from_fd);
            let ring = patiently(ring).map_err(BpfError::write(map::CAPTURE_RINGS))?;
            patiently(|| rings.set(worker, &ring, 0)).map_err(BpfError::write(map::CAPTURE_RINGS))?;
            RingReader::new(reader, bytes, signals.of(worker))
        })
        .collect()
}

/// Attaches TC programs before those of others: as TCX links, or as clsact filters on kernels without.
fn attach_tc(
    object: &mut Object,
    programs: &[(&'static str, TcAttachType)],
    interface: &Interface,
) -> Result<Vec<CaptureLink>, BpfError> {
    if sys::kernel_at_least(6, 6) {
        let attach = |&(name, direction): &(&'static str, TcAttachType)| {
            let program = object.program::<SchedClassifier>(name)?;
            tc::attach_tcx(program, name, &interface.name, direction).map(CaptureLink::Tcx)
        };
        return programs.iter().map(attach).collect();
    }
    let qdisc = tc::Qdisc::ensure(interface, programs)?;
    let attach = |&(name, direction): &(&'static str, TcAttachType)| {
        let program = object.program::<SchedClassifier>(name)?;
        tc::attach_filter(program, name, &interface.name, direction)
    };
    let filters = programs.iter().map(attach).collect::<Result<_, _>>()?;
    Ok(vec![CaptureLink::Clsact { filters, qdisc }])
}

fn attach_xdp(
    object: &mut Object,
    flags: u32,
    mode: &'static str,
    interface: &Interface,
) -> Result<CaptureLink, BpfError> {
    let program = object.program::<Xdp>(CAPTURE_XDP)?;
    let program = program.fd().map_err(|error| refusal(CAPTURE_XDP, &error))?;
    sys::create_xdp_link(program, interface.index, flags).map(CaptureLink::Xdp).map_err(|source| {
        let interface = interface.name.clone();
        match Errno::from_io_error(&source) {
            Some(Errno::PERM) => BpfError::Permission,
            Some(Errno::RANGE) => BpfError::XdpMtu { interface },
            Some(Errno::BUSY | Errno::EXIST) => BpfError::XdpBusy { interface },
            Some(Errno::NODEV) => NetError::NoInterface { name: interface }.into(),
            _ => BpfError::XdpRefused { interface, mode, source },
        }
    })
}

/// The rules in the form of the maps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    ports: BTreeMap<u16, Rule>,
    addresses: BTreeMap<(IpAddress, u16), Rule>,
}

impl Rules {
    fn new(rules: &[CaptureRule], exclude: &[SocketAddr]) -> Result<Self, BpfError> {
        let mut this = Self::default();
        for rule in rules {
            let value = Rule { action: Rule::CAPTURE, id: rule.id };
            let port = this.ports.entry(rule.port).or_insert(Rule { action: Rule::IGNORE, id: 0 });
            let duplicate = if let Some(address) = rule.address {
                port.action |= Rule::BY_ADDRESS;
                this.addresses.insert((address.into(), rule.port), value).is_some()
            } else {
                let duplicate = port.action & Rule::CAPTURE != 0;
                *port = Rule { action: port.action | Rule::CAPTURE, id: rule.id };
                duplicate
            };
            if duplicate {
                let address = rule.address.map_or_else(|| "any address,".to_owned(), |a| a.to_string());
                return Err(BpfError::DuplicateRule { address, port: rule.port });
            }
        }
        for service in exclude {
            // A port that no rule names is not captured anyway.
            if let Some(port) = this.ports.get_mut(&service.port()) {
                port.action |= Rule::BY_ADDRESS;
                this.addresses.insert((service.ip().into(), service.port()), Rule { action: Rule::IGNORE, id: 0 });
            }
        }
        Ok(this)
    }

    fn write(&self, object: &mut Object) -> Result<(), BpfError> {
        let mut addresses: HashMap<_, RuleKey, Rule> =
            object.map_mut(map::ADDRESSES)?.try_into().map_err(BpfError::write(map::ADDRESSES))?;
        for (&(address, port), rule) in &self.addresses {
            let key = RuleKey { address, port: port.to_be_bytes(), _reserved: [0; 2] };
            addresses.insert(key, rule, 0).map_err(BpfError::write(map::ADDRESSES))?;
        }
        let mut ports: Array<_, Rule> = object.map_mut(map::PORTS)?.try_into().map_err(BpfError::write(map::PORTS))?;
        for (&port, rule) in &self.ports {
            ports.set(port.into(), rule, 0).map_err(BpfError::write(map::PORTS))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: u16, address: Option<&str>, port: u16) -> CaptureRule {
        CaptureRule { id, address: address.map(|a| a.parse().unwrap()), port }
    }

    #[test]
    fn rules_with_and_without_address_share_a_port() {
        let rules = [rule(1, Some("10.0.0.3"), 80), rule(2, None, 80), rule(3, Some("2001:db8::1"), 443)];
        let rules = Rules::new(&rules, &["10.0.0.9:80".parse().unwrap(), "10.0.0.9:81".parse().unwrap()]).unwrap();
        assert_eq!(rules.ports[&80], Rule { action: Rule::CAPTURE | Rule::BY_ADDRESS, id: 2 });
        assert_eq!(rules.ports[&443], Rule { action: Rule::BY_ADDRESS, id: 0 });
        assert_eq!(rules.ports.len(), 2);
        let v4 = |last| (IpAddress::from_v4([10, 0, 0, last]), 80);
        assert_eq!(rules.addresses[&v4(3)], Rule { action: Rule::CAPTURE, id: 1 });
        assert_eq!(rules.addresses[&v4(9)], Rule { action: Rule::IGNORE, id: 0 });
    }

    #[test]
    fn the_same_service_twice_is_refused() {
        for address in [None, Some("10.0.0.3")] {
            let rules = [rule(1, address, 80), rule(2, address, 80)];
            assert!(matches!(Rules::new(&rules, &[]), Err(BpfError::DuplicateRule { port: 80, .. })));
        }
    }
}
