//! Errors as findings, with the option that removes their cause.
//!
//! What is below the command line says in its own terms what is wrong and what helps. This is the only place that knows
//! by which option the operator says so.

use std::{error::Error, io};

use rustix::io::Errno;

use crate::{
    affinity::PinError,
    bpf::{BpfError, KernelFeature},
    control::{ConnectError, HandshakeError, PskError, ServerError},
    finding::Finding,
    inject::InjectError,
    net::NetError,
    process::{SummaryFileError, descriptors, logging::LogFileError, pidfile::PidFileError, user::UserError},
};

/// Makes a finding of an error that ends the program: its causes, then the option that helps, if one does.
pub(super) fn finding(error: &anyhow::Error) -> Finding {
    let finding = Finding::error(format!("{error:#}")).option(error.chain().find_map(option));
    if finding.what.contains(&io::Error::from(Errno::MFILE).to_string()) {
        finding.remedy(descriptors::REMEDY)
    } else {
        finding
    }
}

/// Returns the option that helps against one error of a chain.
fn option(error: &(dyn Error + 'static)) -> Option<&'static str> {
    None.or_else(|| error.downcast_ref().and_then(of_bpf))
        .or_else(|| error.downcast_ref().and_then(of_net))
        .or_else(|| error.downcast_ref().and_then(of_inject))
        .or_else(|| error.downcast_ref().and_then(of_server))
        .or_else(|| error.downcast_ref().and_then(of_connect))
        .or_else(|| error.downcast_ref().and_then(of_psk))
        .or_else(|| error.downcast_ref::<PinError>().map(|_| "--pin"))
        .or_else(|| error.downcast_ref::<LogFileError>().map(|_| "-l FILE"))
        .or_else(|| error.downcast_ref::<PidFileError>().map(|_| "-P FILE"))
        .or_else(|| error.downcast_ref::<SummaryFileError>().map(|_| "--summary-json FILE"))
        .or_else(|| error.downcast_ref::<UserError>().map(|_| "--user NAME"))
}

fn of_bpf(error: &BpfError) -> Option<&'static str> {
    match error {
        BpfError::XdpNotEthernet { .. }
        | BpfError::XdpRefused { .. }
        | BpfError::XdpMtu { .. }
        | BpfError::XdpBusy { .. }
        | BpfError::Kernel(KernelFeature::XdpFragments) => Some("--hook tc"),
        BpfError::Kernel(KernelFeature::Tcx) => Some("--attach clsact"),
        BpfError::Stacked { .. } => Some("-i NAME"),
        BpfError::DuplicateRule { .. } => Some("-x"),
        BpfError::Workers { .. } => Some("-w N"),
        BpfError::Ring { .. } => Some("--ring-size"),
        BpfError::Net(error) => of_net(error),
        BpfError::Permission
        | BpfError::Object(_)
        | BpfError::Missing { .. }
        | BpfError::Perfmon { .. }
        | BpfError::Verifier { .. }
        | BpfError::Load { .. }
        | BpfError::Attach { .. }
        | BpfError::Map { .. } => None,
    }
}

fn of_net(error: &NetError) -> Option<&'static str> {
    match error {
        NetError::NoDefaultInterface { .. } => Some("-i NAME"),
        _ => None,
    }
}

fn of_inject(error: &InjectError) -> Option<&'static str> {
    match error {
        InjectError::TargetIsLocal { .. } | InjectError::LinkUnsupported { .. } => Some("--inject raw or auto"),
        InjectError::TargetNotUnicast { .. } => Some("-x"),
        InjectError::Net(error) => of_net(error),
        _ => None,
    }
}

fn of_server(error: &ServerError) -> Option<&'static str> {
    match error {
        ServerError::PortInUse { .. } | ServerError::NotPermitted { .. } => Some("-p PORT"),
        ServerError::NoSuchAddress { .. } | ServerError::NoAddress => Some("-b ADDRESS"),
        ServerError::Io { .. } => Some("-b ADDRESS, -p PORT"),
    }
}

fn of_connect(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::Dial { .. } | ConnectError::Timeout { .. } => Some("-s ADDRESS:PORT"),
        ConnectError::Handshake { cause: HandshakeError::NotTcpcopy, .. } => Some("-s ADDRESS:PORT"),
        ConnectError::Handshake { cause: HandshakeError::SecurityMismatch { .. }, .. } => {
            Some("--psk-file FILE, or --insecure on both sides")
        }
        ConnectError::Handshake { cause: HandshakeError::BadKey, .. } => Some("--psk-file FILE"),
        ConnectError::Handshake { .. } | ConnectError::Refused { .. } => None,
    }
}

fn of_psk(error: &PskError) -> Option<&'static str> {
    match error {
        PskError::Missing { .. } | PskError::NotAFile { .. } => Some("--psk-file FILE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::{
        finding::Severity,
        process::{Files, SummaryFile, user::User},
    };

    fn worded(error: &anyhow::Error) -> String {
        let finding = finding(error);
        assert_eq!(finding.severity, Severity::Error);
        finding.to_string()
    }

    /// Errors as they arrive, with and without context and wrapping, each with the option that must be named.
    fn samples() -> Vec<(anyhow::Error, &'static str)> {
        let address = "192.0.2.1:36524".parse().unwrap();
        let handshake = |cause| anyhow::Error::from(ConnectError::Handshake { address, cause });
        vec![
            (BpfError::XdpBusy { interface: "eth0".into() }.into(), "--hook tc"),
            (BpfError::Kernel(KernelFeature::XdpFragments).into(), "--hook tc"),
            (BpfError::Kernel(KernelFeature::Tcx).into(), "--attach clsact"),
            (BpfError::Net(NetError::NoDefaultInterface { found: vec![] }).into(), "-i NAME"),
            (NetError::NoDefaultInterface { found: vec!["a".into(), "b".into()] }.into(), "-i NAME"),
            (InjectError::TargetIsLocal { target: [192, 0, 2, 1].into() }.into(), "--inject raw"),
            (ServerError::PortInUse { address }.into(), "-p PORT"),
            (ServerError::NoSuchAddress { address }.into(), "-b ADDRESS"),
            (ConnectError::Timeout { address }.into(), "-s ADDRESS:PORT"),
            (handshake(HandshakeError::SecurityMismatch { theirs_is_insecure: true }), "--insecure on both sides"),
            (handshake(HandshakeError::BadKey), "--psk-file"),
            (PskError::Missing { path: "/k".into() }.into(), "--psk-file"),
            (crate::affinity::check(&"0-1023".parse().unwrap()).unwrap_err().into(), "--pin"),
            (PidFileError::Running("/p".into()).into(), "-P FILE"),
            (User::find("no such user").unwrap_err().into(), "--user NAME"),
            (SummaryFile::open("/no/f".as_ref(), &mut Files::default()).unwrap_err().into(), "--summary-json FILE"),
        ]
    }

    #[test]
    fn the_option_that_helps_comes_last_whatever_is_around_the_error() {
        for (error, option) in samples() {
            let plain = format!("{error:#}");
            assert!(!plain.contains(option), "what is below the command line names an option: {plain}");
            let text = worded(&Err::<(), _>(error).context("cannot start").unwrap_err());
            assert!(text.starts_with(&format!("cannot start: {plain} (")) && text.ends_with(')'), "{text}");
            assert!(text.contains(option), "{option} is missing: {text}");
        }
    }

    #[test]
    fn an_error_that_no_option_helps_against_is_left_as_it_is() {
        let error = anyhow::Error::from(BpfError::Permission);
        assert_eq!(worded(&error), error.to_string());
    }

    #[test]
    fn too_few_descriptors_are_explained_wherever_they_are_missed() {
        let error = anyhow::Error::from(io::Error::from(Errno::MFILE)).context("cannot make an eventfd");
        assert!(worded(&error).ends_with(descriptors::REMEDY), "{}", worded(&error));
    }
}
