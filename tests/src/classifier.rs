//! Small programs for what comes in at an interface, written down as instructions.

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use crate::Host;

/// `r0 = TCX_NEXT; exit` (RFC 9669, section 3).
pub const NEXT: [[u8; 8]; 2] = [[0xb4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Returns the instructions that give another interface a copy of each packet to send:
/// `bpf_clone_redirect(skb, index, 0)`.
pub fn copy_to(index: u32) -> Vec<[u8; 8]> {
    let [a, b, c, d] = index.to_le_bytes();
    let call = [[0xb7, 2, 0, 0, a, b, c, d], [0xb7, 3, 0, 0, 0, 0, 0, 0], [0x85, 0, 0, 0, 13, 0, 0, 0]];
    [&call[..], &NEXT].concat()
}

/// An attached program. Detached when this is dropped.
pub struct Classifier {
    _object: Ebpf,
}

impl Classifier {
    /// Attaches a program at the end of the chain of those for what comes in at an interface, by a link (Linux 6.6).
    pub fn attach(host: &Host, interface: &str, name: &str, instructions: &[[u8; 8]]) -> anyhow::Result<Self> {
        let mut object = Ebpf::load(&elf(name, instructions)?)?;
        let program: &mut SchedClassifier = object.program_mut(name).context("no program")?.try_into()?;
        program.load()?;
        host.run(|| program.attach(interface, TcAttachType::Ingress))??;
        Ok(Self { _object: object })
    }
}

/// Makes an object file with the program.
fn elf(name: &str, instructions: &[[u8; 8]]) -> anyhow::Result<Vec<u8>> {
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    ensure!(endianness == Endianness::Little, "the instructions are written down for little-endian machines");
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, endianness);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::ReadOnlyData);
    object.append_section_data(license, b"GPL\0", 1);
    let code = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(code, instructions.as_flattened(), 8);
    object.add_symbol(Symbol {
        name: name.into(),
        value: 0,
        size: instructions.as_flattened().len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}
