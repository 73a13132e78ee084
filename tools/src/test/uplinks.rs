//! Networks with an uplink: what a guest fetches from this computer, and this computer from the guest.

use super::Test;
use super::guests::{free_port, verdict};
use super::linux::{boot, check, ended_with};
use super::record::Outcome;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// Bytes of the file that the guest fetches: on Bochs what takes it half a minute.
const fn file_bytes(machine: Machine) -> usize {
    if machine.is_bochs() { 8 << 20 } else { 16 << 20 }
}

/// The page that the guest serves.
const PAGE: &str = "a page of the guest";
/// How long this computer waits for an answer of the guest's.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let driver = machine.uplinks()[0].name();
    let shows = "Debian gets an address, fetches a file of this computer's unharmed, and serves a page to it by --publish";
    let name = format!("{}/linux-net-{driver}", machine.name());
    vec![Test::on(machine, name, shows, move |name| run(machine, name))]
}

fn run(machine: Machine, name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let file = folder.path().join("file");
    let bytes = file_bytes(machine);
    workspace::write(&file, content(bytes))?;
    let sum = md5(&file)?;
    let published = free_port()?;
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let port = server.local_addr()?.port();
    // It ends with the process.
    thread::spawn(move || serve(&server, published, bytes));
    let command = format!(
        "mkdir /tmp/www; echo '{PAGE}' > /tmp/www/index.html; httpd -h /tmp/www
wget -q -O - http://10.0.2.2:{port}/file | md5sum
wget -q -O - http://10.0.2.2:{port}/page"
    );
    let publish = format!("{published}:80");
    let words = ["--machine", machine.name(), "--net", "user", "--publish", &publish, "--exec", &command];
    let (report, options) = boot(&words, None, name)?;
    Ok(verdict(&report, &options.log, || judge(&report, &sum)))
}

fn judge(report: &Report, sum: &str) -> Result<(), String> {
    let stdout = String::from_utf8_lossy(&report.stdout);
    check(
        stdout == format!("{sum}  -\n{PAGE}\n"),
        &format!("the command said {stdout:?}, the sum is {sum}"),
    )?;
    ended_with(report, &Verdict::Command(0))
}

/// Bytes that no compression and no repetition makes the same.
fn content(bytes: usize) -> Vec<u8> {
    // Marsaglia's xorshift.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

fn md5(file: &Path) -> Result<String> {
    let output = Command::new("md5sum").arg(file).output().context("cannot start md5sum")?;
    ensure!(output.status.success(), "md5sum failed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').next().map(str::to_owned).context("md5sum says nothing")
}

/// Serves the file, and as a page what the guest serves.
fn serve(server: &TcpListener, published: u16, bytes: usize) {
    for stream in server.incoming().flatten() {
        // What goes wrong here, the guest shows.
        let _ = answer(stream, published, bytes);
    }
}

fn answer(stream: TcpStream, published: u16, bytes: usize) -> io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(&stream);
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = if request.contains("/page") { fetch(published)? } else { content(bytes) };
    let mut stream = &stream;
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// The body of the page that a guest serves at a published port.
pub(super) fn fetch(port: u16) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    Ok(end.map_or(answer.clone(), |end| answer[end + 4..].to_vec()))
}
