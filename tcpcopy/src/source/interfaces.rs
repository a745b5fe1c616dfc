//! The interfaces that are captured on: one that is made anew is captured on again.

use crate::{
    bpf::{BpfError, Capture},
    links::Links,
    net::{
        NetError,
        interface::{Interface, LinkChange, interfaces},
    },
};

/// Waits for interfaces that come and go.
pub(super) struct Interfaces(Option<Links>);

impl Interfaces {
    /// Starts to watch. Call this before anything is attached.
    ///
    /// # Errors
    /// When the kernel cannot be listened to.
    pub(super) fn watch() -> anyhow::Result<Self> {
        Links::watch().map(|links| Self(Some(links)))
    }

    /// Returns what has happened since the last call, as soon as something has. Cancel safe. When the kernel cannot be
    /// listened to any more, it says so once, and nothing happens from then on.
    pub(super) async fn changes(&mut self) -> Vec<LinkChange> {
        let Some(links) = &mut self.0 else { return std::future::pending().await };
        match links.changes().await {
            Ok(changes) => changes,
            Err(e) => {
                log::error!("cannot watch the interfaces any more: {e}; one that is made anew is not captured on");
                self.0 = None;
                Vec::new()
            }
        }
    }
}

/// Follows what has happened to interfaces.
pub(super) fn apply(changes: &[LinkChange], capture: &mut Capture) {
    for change in changes {
        match change {
            LinkChange::Present(interface) => attach(interface, capture),
            LinkChange::Removed { index, name } => {
                if capture.detach_from(*index) {
                    log::warn!("{name} is gone: nothing is captured there until it is back");
                }
            }
            LinkChange::Missed => match interfaces() {
                Ok(present) => {
                    let gone: Vec<u32> =
                        capture.attached().filter(|index| present.iter().all(|i| i.index != *index)).collect();
                    for index in gone {
                        capture.detach_from(index);
                    }
                    present.iter().for_each(|interface| attach(interface, capture));
                }
                Err(e) => log::error!("cannot list the interfaces: {e}; one that is made anew is not captured on"),
            },
        }
    }
}

/// Idempotent: an interface is announced again whenever something about it changes.
fn attach(interface: &Interface, capture: &mut Capture) {
    let name = &interface.name;
    match capture.attach_again(interface) {
        Ok(None) => {}
        Ok(Some(attachment)) => log::info!("capturing on the new {name} by {}", attachment.hook),
        // It was there for a moment only.
        Err(BpfError::Net(NetError::NoInterface { .. })) => {}
        Err(e) => log::error!("cannot capture on the new {name}: {e}"),
    }
}
