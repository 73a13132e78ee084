//! Files of a tar archive that is a disk (POSIX.1, pax, "ustar Interchange Format").
//!
//! Headers and contents begin at sectors: tar's block is 512 bytes, as a sector is. `tar -cf DISK -C FOLDER .` makes one.

use guest_pv_driver::{BlockDevice, SECTOR_BYTES};
use heapless::{String, Vec};

/// Files that an archive may have; later ones are not there.
pub const MAX_FILES: usize = 256;
/// Bytes of a name; files with longer ones are not there.
pub const MAX_NAME: usize = 128;

/// The name of a file, without a slash in front.
pub type Name = String<MAX_NAME>;

/// The names of the files and where they are. The caller has a place for it, which the stack is not.
pub type Index = Vec<(Name, Extent), MAX_FILES>;

type Sector = [u8; SECTOR_BYTES];

/// Where a header has the type of what is behind it.
const TYPE: usize = 156;
/// The name of the next file, as it does not fit its header.
const GNU_LONG_NAME: u8 = b'L';

/// Where a file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first sector.
    pub sector: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Extent {
    /// The sector behind it.
    fn end(&self) -> Option<u64> {
        self.sector.checked_add(self.bytes.div_ceil(SECTOR_BYTES as u64))
    }
}

/// Why a disk cannot be served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// This sector should be a header and is none.
    NoHeader(u64),
    /// The disk failed.
    Disk(E),
}

/// A disk that is an archive.
#[derive(Debug)]
pub struct Archive<D> {
    disk: D,
    index: &'static Index,
}

impl<D: BlockDevice> Archive<D> {
    /// Reads all headers. Of two files with one name the later one is there, as when tar unpacks.
    pub fn open(mut disk: D, index: &'static mut Index) -> Result<Self, Error<D::Error>> {
        index.clear();
        let mut header = [0; SECTOR_BYTES];
        let (mut at, end) = (0, disk.sectors());
        let mut is_told_elsewhere = false;
        while at < end {
            disk.read(at, &mut header).map_err(Error::Disk)?;
            if header == [0; SECTOR_BYTES] {
                break;
            }
            let extent = extent(&header, at).ok_or(Error::NoHeader(at))?;
            at = extent.end().filter(|next| *next <= end).ok_or(Error::NoHeader(at))?;
            match header[TYPE] {
                b'x' => is_told_elsewhere |= tells(&mut disk, extent, &mut header).map_err(Error::Disk)?,
                GNU_LONG_NAME => is_told_elsewhere = true,
                b'0' | 0 if !is_told_elsewhere => add(index, &header, extent),
                _ => is_told_elsewhere = false,
            }
        }
        Ok(Archive { disk, index })
    }

    /// The names of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.iter().map(|(name, _)| name.as_str())
    }

    /// Where the file with this name is.
    pub fn find(&self, name: &str) -> Option<Extent> {
        self.index.iter().find(|(known, _)| known == name).map(|(_, extent)| *extent)
    }

    /// Reads whole sectors.
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<(), D::Error> {
        self.disk.read(sector, into)
    }
}

/// Whether a pax header has the name or the size of the file behind it, rather than, say, its exact time.
fn tells<D: BlockDevice>(disk: &mut D, extent: Extent, sector: &mut Sector) -> Result<bool, D::Error> {
    let Some(len) = usize::try_from(extent.bytes).ok().filter(|len| *len <= SECTOR_BYTES) else {
        return Ok(true);
    };
    disk.read(extent.sector, sector)?;
    let mut places = sector[..len].windows(6);
    Ok(places.any(|place| place == b" path=" || place == b" size="))
}

/// The content behind the header in sector `at`; `None` if it is no header.
fn extent(header: &Sector, at: u64) -> Option<Extent> {
    const CHECKSUM: core::ops::Range<usize> = 148..156;
    let bytes = header.iter().enumerate();
    let sum: u64 = bytes.map(|(at, byte)| u64::from(if CHECKSUM.contains(&at) { b' ' } else { *byte })).sum();
    if octal(&header[CHECKSUM]) != Some(sum) {
        return None;
    }
    Some(Extent { sector: at + 1, bytes: octal(&header[124..136])? })
}

/// Text up to a zero byte.
fn text(field: &[u8]) -> Option<&str> {
    core::str::from_utf8(field.split(|byte| *byte == 0).next()?).ok()
}

/// A number in octal digits, between spaces and zero bytes.
fn octal(field: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

fn add(index: &mut Index, header: &Sector, extent: Extent) {
    let Some(name) = name(header) else { return };
    match index.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = extent,
        // A file without room in the index is not there.
        None => drop(index.push((name, extent))),
    }
}

/// The name in a header, without the `./` that tar likes to put in front; `None` if it leads out of the archive, or is too long.
fn name(header: &Sector) -> Option<Name> {
    // GNU's headers have other things there.
    let has_prefix = header[257..263] == *b"ustar\0";
    let prefix = if has_prefix { text(&header[345..500])? } else { "" };
    let mut name = Name::new();
    for part in prefix.split('/').chain(text(&header[..100])?.split('/')) {
        match part {
            "" | "." => continue,
            ".." => return None,
            _ => {}
        }
        if !name.is_empty() {
            name.push('/').ok()?;
        }
        name.push_str(part).ok()?;
    }
    (!name.is_empty()).then_some(name)
}
