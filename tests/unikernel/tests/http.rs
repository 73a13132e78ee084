//! Requests as clients send them, and as they should not.

use unikernel::http::{self, Head, Status, content_type, parse};

fn name_of(target: &str) -> Result<String, Status> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    parse(request.as_bytes()).map(|found| found.expect("the request is complete").0.name.to_string())
}

fn refusal(request: &str) -> Option<Status> {
    parse(request.as_bytes()).err()
}

#[test]
fn a_request_is_complete_with_its_empty_line() {
    let request = b"HEAD /a HTTP/1.1\r\nHost: a\r\nUser-Agent: test\r\n\r\n";
    for len in 0..request.len() {
        assert_eq!(parse(&request[..len]), Ok(None), "{len} bytes");
    }
    let followed = [&request[..], b"GET"].concat();
    let (parsed, len) = parse(&followed).unwrap().unwrap();
    assert_eq!(
        (parsed.is_head, parsed.name.as_str(), parsed.keep_alive, len),
        (true, "a", true, request.len())
    );
}

#[test]
fn a_target_names_a_file() {
    for (target, name) in [
        ("/", "index.html"),
        ("/a.txt", "a.txt"),
        ("/sub/", "sub/index.html"),
        ("/a.txt?query=/b", "a.txt"),
        ("/with%20space%2Fslash", "with space/slash"),
        ("/%C3%A4", "\u{e4}"),
        ("http://example.org/a", "a"),
        ("http://example.org", "index.html"),
        // Compared with names that have no such parts, and never followed.
        ("/../etc/passwd", "../etc/passwd"),
        ("/%2e%2e/etc", "../etc"),
        ("//a", "/a"),
    ] {
        assert_eq!(name_of(target).as_deref(), Ok(name), "{target}");
    }
}

#[test]
fn a_target_that_names_none_is_refused() {
    for target in ["a", "*", "/%", "/%4", "/%zz", "/%+1", "/%ff", "https://a/"] {
        assert_eq!(name_of(target), Err(http::BAD_REQUEST), "{target}");
    }
    assert_eq!(name_of(&format!("/{}", "x".repeat(300))), Err(http::NOT_FOUND));
    assert_eq!(name_of(&format!("/{}/", "x".repeat(125))), Err(http::NOT_FOUND));
}

#[test]
fn what_files_do_not_need_is_refused() {
    let host = "Host: a\r\n";
    let body = "Content-Length: 5";
    for (request, status) in [
        (format!("POST / HTTP/1.1\r\n{host}\r\n"), http::METHOD_NOT_ALLOWED),
        (format!("GET / HTTP/1.1\r\n{host}{body}\r\n\r\n"), http::CONTENT_TOO_LARGE),
        (format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n"), http::CONTENT_TOO_LARGE),
        ("GET / HTTP/1.1\r\n\r\n".into(), http::BAD_REQUEST),
        (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), http::BAD_REQUEST),
        (format!("GET / HTTP/2.0\r\n{host}\r\n"), http::VERSION_NOT_SUPPORTED),
        (format!("GET / HTTP/1.1\r\n{host}bad name: x\r\n\r\n"), http::BAD_REQUEST),
        ("\x16\x03\x01\x02\x00".into(), http::BAD_REQUEST),
        (format!("GET / HTTP/1.1\r\n{host}{}\r\n", "A: b\r\n".repeat(64)), http::FIELDS_TOO_LARGE),
    ] {
        assert_eq!(refusal(&request), Some(status), "{request:?}");
    }
    assert_eq!(refusal("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"), None);
}

#[test]
fn a_connection_stays_unless_the_client_says_otherwise() {
    let stays = |request: &str| parse(request.as_bytes()).unwrap().unwrap().0.keep_alive;
    assert!(stays("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(!stays("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"));
    assert!(!stays("GET / HTTP/1.0\r\n\r\n"));
}

#[test]
fn no_head_is_longer_than_it_may_be() {
    let content_type =
        ["a.html", "a.ico", "a.bin", "a.js"].map(content_type).into_iter().max_by_key(|text| text.len());
    let head = Head {
        status: http::FIELDS_TOO_LARGE,
        content_type: content_type.unwrap(),
        bytes: u64::MAX,
        keep_alive: false,
    };
    assert!(head.to_string().len() + "Allow: GET, HEAD\r\n".len() <= Head::MAX_BYTES);
}
