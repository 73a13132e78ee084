//! Archives as tar makes them, and as it does not.

mod lab;

use lab::{Ram, leak, tar};
use unikernel::archive::{Archive, Error, Extent, Index};

fn open(image: Vec<u8>) -> Result<Archive<Ram>, Error<()>> {
    Archive::open(Ram(image), leak(Index::new()))
}

fn names(archive: &Archive<Ram>) -> Vec<&str> {
    let mut names: Vec<&str> = archive.names().collect();
    names.sort_unstable();
    names
}

#[test]
fn files_are_found_by_the_names_that_they_had_in_their_folder() {
    for format in ["gnu", "ustar", "posix", "v7"] {
        let files: [(&str, &[u8]); 3] = [("a.txt", b"first"), ("sub/b.txt", b"second"), ("empty", b"")];
        let mut archive = open(tar(&files, &["--format", format])).unwrap();
        assert_eq!(names(&archive), ["a.txt", "empty", "sub/b.txt"], "{format}");
        let Extent { sector, bytes } = archive.find("sub/b.txt").unwrap();
        let mut content = [0; 512];
        archive.read(sector, &mut content).unwrap();
        assert_eq!(&content[..bytes as usize], b"second");
        assert_eq!(archive.find("empty").map(|file| file.bytes), Some(0));
        assert_eq!(archive.find("sub"), None, "a folder is no file");
    }
}

#[test]
fn a_long_name_in_two_fields_of_a_header_is_one_name() {
    let name = format!("{}/{}", "folder".repeat(8), "f".repeat(70));
    let archive = open(tar(&[(&name, b"x")], &["--format", "ustar"])).unwrap();
    assert_eq!(names(&archive), [name.as_str()]);
}

#[test]
fn a_file_whose_name_is_in_no_header_is_not_there_under_half_of_its_name() {
    for format in ["gnu", "posix"] {
        let long = "n".repeat(120);
        let archive = open(tar(&[(&long, b"x"), ("short", b"y")], &["--format", format])).unwrap();
        assert_eq!(names(&archive), ["short"], "{format}");
    }
}

#[test]
fn names_that_lead_out_of_the_archive_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), b"x").unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("y"), b"y").unwrap();
    let output =
        std::process::Command::new("tar").args(["-P", "-cf", "-", "../x", "y"]).current_dir(inner).output();
    assert_eq!(names(&open(output.unwrap().stdout).unwrap()), ["y"]);
}

#[test]
fn of_two_files_with_one_name_the_later_is_there() {
    let (first, second) = (tar(&[("a", b"old")], &[]), tar(&[("a", b"newer")], &[]));
    let end = (0..first.len()).step_by(512).find(|at| first[*at..at + 512] == [0; 512]).unwrap();
    let archive = open([&first[..end], &second].concat()).unwrap();
    assert_eq!(archive.find("a").map(|file| file.bytes), Some(5));
}

#[test]
fn a_disk_that_is_no_archive_is_refused() {
    assert_eq!(open(vec![7; 4096]).err(), Some(Error::NoHeader(0)));
    assert!(open(Vec::new()).is_ok_and(|archive| archive.names().count() == 0));
}

#[test]
fn a_file_that_goes_on_behind_the_end_of_the_disk_is_refused() {
    let image = tar(&[("a", &[1; 5000])], &[]);
    let at = (0..image.len()).step_by(512).find(|at| image[*at..].starts_with(b"./a\0")).unwrap();
    let cut = image[..at + 1024].to_vec();
    assert_eq!(open(cut).err(), Some(Error::NoHeader(at as u64 / 512)));
    let mut endless = image;
    // GNU tar's largest sizes are binary, with the highest bit set; no disk is so large.
    endless[at + 124..at + 136].copy_from_slice(b"77777777777\0");
    let sum: u64 = endless[at..at + 512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    endless[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(open(endless).err(), Some(Error::NoHeader(at as u64 / 512)));
}

#[test]
fn no_byte_of_a_header_makes_the_reader_panic() {
    let image = tar(&[("a.txt", b"first"), ("b", b"second")], &[]);
    for at in 0..2048.min(image.len()) {
        for value in [0, 0x80, 0xff, b'7', b'/'] {
            let mut damaged = image.clone();
            damaged[at] = value;
            let _ = open(damaged);
        }
    }
}
