//! HTTP/1.1 (RFC 9110, RFC 9112), as much as files need: GET and HEAD, no bodies in requests.

use crate::archive::Name;
use core::fmt;

/// Header fields that a request may have.
const MAX_FIELDS: usize = 64;

/// A status line's code and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16, pub &'static str);

/// The file follows.
pub const OK: Status = Status(200, "OK");
/// The request is no HTTP, or breaks its rules.
pub const BAD_REQUEST: Status = Status(400, "Bad Request");
/// There is no such file.
pub const NOT_FOUND: Status = Status(404, "Not Found");
/// Neither GET nor HEAD.
pub const METHOD_NOT_ALLOWED: Status = Status(405, "Method Not Allowed");
/// The request has a body.
pub const CONTENT_TOO_LARGE: Status = Status(413, "Content Too Large");
/// The request is longer than its buffer.
pub const FIELDS_TOO_LARGE: Status = Status(431, "Request Header Fields Too Large");
/// Neither HTTP/1.1 nor HTTP/1.0.
pub const VERSION_NOT_SUPPORTED: Status = Status(505, "HTTP Version Not Supported");

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// HEAD: only what comes before the content.
    pub is_head: bool,
    /// Which file.
    pub name: Name,
    /// The connection is for more requests.
    pub keep_alive: bool,
}

/// A request, and how many bytes it is long, from the beginning of what a client sent; `None` if it is not complete. After an
/// error nobody knows where the next request would begin.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let len = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(FIELDS_TOO_LARGE),
        Err(httparse::Error::Version) => return Err(VERSION_NOT_SUPPORTED),
        Err(_) => return Err(BAD_REQUEST),
    };
    let is_new = parsed.version == Some(1);
    let fields = Fields::of(parsed.headers);
    // RFC 9112 3.2: without exactly one the request is to be refused.
    if fields.hosts > 1 || is_new && fields.hosts == 0 {
        return Err(BAD_REQUEST);
    }
    let is_head = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(METHOD_NOT_ALLOWED),
    };
    if fields.has_body {
        return Err(CONTENT_TOO_LARGE);
    }
    let name = name(parsed.path.unwrap_or_default())?;
    Ok(Some((Request { is_head, name, keep_alive: is_new && !fields.wants_close }, len)))
}

/// What the header fields say.
#[derive(Default)]
struct Fields {
    hosts: usize,
    has_body: bool,
    wants_close: bool,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>]) -> Self {
        let mut fields = Fields::default();
        for httparse::Header { name, value } in headers {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            fields.hosts += usize::from(is("host"));
            fields.has_body |= is("transfer-encoding") || is("content-length") && *value != b"0";
            let mut options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            fields.wants_close |=
                is("connection") && options.any(|option| option.eq_ignore_ascii_case(b"close"));
        }
        fields
    }
}

/// The name of the file that a request's target means: its path, decoded. That of a folder means the folder's `index.html`.
fn name(target: &str) -> Result<Name, Status> {
    // RFC 9112 3.2.2: a whole URI, as proxies get it.
    let path = match target.strip_prefix("http://") {
        Some(uri) => uri.find('/').map_or("/", |slash| &uri[slash..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().and_then(|path| path.strip_prefix('/')).ok_or(BAD_REQUEST)?;
    // What does not fit is no file's name.
    let mut bytes = heapless::Vec::<u8, { crate::archive::MAX_NAME }>::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => percent(rest.next(), rest.next()).ok_or(BAD_REQUEST)?,
            byte => byte,
        };
        bytes.push(byte).map_err(|_| NOT_FOUND)?;
    }
    let mut name = Name::from_utf8(bytes).map_err(|_| BAD_REQUEST)?;
    if name.is_empty() || name.ends_with('/') {
        name.push_str("index.html").map_err(|_| NOT_FOUND)?;
    }
    Ok(name)
}

/// The byte of two hexadecimal digits.
fn percent(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

/// The media type of a file, from the end of its name.
pub fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("pdf") => "application/pdf",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("ico") => "image/vnd.microsoft.icon",
        _ => "application/octet-stream",
    }
}

/// What comes before the content of a response. As text it has at most [`Head::MAX_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The status.
    pub status: Status,
    /// The media type of the content.
    pub content_type: &'static str,
    /// Bytes of the content.
    pub bytes: u64,
    /// The connection stays.
    pub keep_alive: bool,
}

impl Head {
    /// Bytes of the longest one.
    pub const MAX_BYTES: usize = 256;
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status(code, reason) = self.status;
        write!(f, "HTTP/1.1 {code} {reason}\r\nContent-Type: {}\r\n", self.content_type)?;
        write!(f, "Content-Length: {}\r\n", self.bytes)?;
        if self.status == METHOD_NOT_ALLOWED {
            f.write_str("Allow: GET, HEAD\r\n")?;
        }
        f.write_str(if self.keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" })
    }
}
