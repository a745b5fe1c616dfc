//! A program that does nothing, beside those that are measured: what the kernel's statistics say of it is what they
//! cost themselves.

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use lab::Host;
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// `r0 = TCX_NEXT; exit` (RFC 9669, section 3).
const INSTRUCTIONS: [u8; 16] = [0xb4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The program, attached. Detached when this is dropped.
pub struct Idle {
    _object: Ebpf,
}

impl Idle {
    /// What the kernel calls it.
    pub const NAME: &str = "idle";

    /// Attaches it at the end of the chain of programs for what comes in at a host, by a link (Linux 6.6).
    pub fn attach(host: &Host) -> anyhow::Result<Self> {
        let mut object = Ebpf::load(&elf()?)?;
        let program: &mut SchedClassifier = object.program_mut(Self::NAME).context("no program")?.try_into()?;
        program.load()?;
        host.run(|| program.attach(&host.interface, TcAttachType::Ingress))??;
        Ok(Self { _object: object })
    }
}

/// Makes an object file with the program.
fn elf() -> anyhow::Result<Vec<u8>> {
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    ensure!(endianness == Endianness::Little, "the instructions are written down for little-endian machines");
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, endianness);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::ReadOnlyData);
    object.append_section_data(license, b"GPL\0", 1);
    let code = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(code, &INSTRUCTIONS, 8);
    object.add_symbol(Symbol {
        name: Idle::NAME.into(),
        value: 0,
        size: INSTRUCTIONS.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}
