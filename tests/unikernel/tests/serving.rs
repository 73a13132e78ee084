//! The server over the drivers of paravirtual devices, and clients of every kind.

mod lab;

use lab::{Lab, Response};
use smoltcp::time::Duration;
use smoltcp::wire::{EthernetFrame, Ipv4Address, Ipv4Packet, TcpPacket};
use unikernel::server::CONNECTIONS;

const PAGE: &[u8] = b"<h1>Hello</h1>\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n")
}

/// Content that shows where it is from.
fn large() -> Vec<u8> {
    (0..100_003_u32).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_page_is_served() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    let response = lab.ask(&get("/"));
    assert_eq!((response.code(), &response.body[..]), (200, PAGE));
    assert_eq!(response.field("Content-Type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.field("Connection"), None);
}

#[test]
fn the_networks_dhcp_server_says_the_address() {
    let mut lab = Lab::with_dhcp(&[("index.html", PAGE)]);
    assert_eq!(lab.address(), None);
    lab.pass(Duration::from_secs(15));
    assert_eq!(lab.address(), Some(Ipv4Address::new(10, 0, 0, 1)));
    assert_eq!(lab.ask(&get("/")).body, PAGE);
    // Past the lease, which is renewed.
    lab.pass(Duration::from_secs(5000));
    assert_eq!(lab.ask(&get("/")).body, PAGE);
}

#[test]
fn head_is_a_response_without_its_content() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    let response = lab.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        (response.code(), response.field("Content-Length"), response.body.len()),
        (200, Some("15"), 0)
    );
}

#[test]
fn what_is_not_in_the_archive_is_not_found() {
    let mut lab = Lab::new(&[("index.html", PAGE), ("sub/a", b"a")]);
    for path in
        ["/b", "/sub", "/sub/", "/../index.html", "//index.html", "/sub/../index.html", "/index.html%00"]
    {
        assert_eq!(lab.ask(&get(path)).code(), 404, "{path}");
    }
    assert_eq!(lab.ask(&get("/sub/a")).body, b"a");
}

#[test]
fn a_file_of_many_segments_arrives_whole_through_any_window() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content), ("small", b"s")]);
    for window in [65536, 3000, 700] {
        let connection = lab.connect(window);
        let answer = lab.exchange(connection, get("/large").as_bytes());
        let (response, rest) = Response::parse(&answer);
        assert!(response.body == content, "through a window of {window} bytes");
        assert_eq!(rest, b"");
        let answer = lab.exchange(connection, get("/small").as_bytes());
        assert_eq!(Response::parse(&answer).0.body, b"s", "the connection is still of use");
    }
}

#[test]
fn requests_that_arrive_together_are_answered_in_order() {
    let mut lab = Lab::new(&[("a", b"first"), ("b", &[7; 2000])]);
    let connection = lab.connect(65536);
    let requests = [get("/a"), get("/none"), get("/b"), get("/a")].concat();
    let answer = lab.exchange(connection, requests.as_bytes());
    let mut rest = &answer[..];
    for (code, body) in [(200, &b"first"[..]), (404, b"404 Not Found\n"), (200, &[7; 2000]), (200, b"first")]
    {
        let (response, behind) = Response::parse(rest);
        assert_eq!((response.code(), &response.body[..]), (code, body));
        rest = behind;
    }
    assert_eq!(rest, b"");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    let connection = lab.connect(65536);
    let request = get("/");
    let (last, first) = request.as_bytes().split_last().unwrap();
    for byte in first {
        lab.pass(Duration::from_millis(5));
        lab.socket(connection).send_slice(&[*byte]).unwrap();
    }
    let answer = lab.exchange(connection, &[*last]);
    assert_eq!(Response::parse(&answer).0.body, PAGE);
}

#[test]
fn a_client_that_closed_its_side_gets_its_response() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content)]);
    let connection = lab.connect(65536);
    lab.settle();
    lab.socket(connection).send_slice(get("/large").as_bytes()).unwrap();
    lab.socket(connection).close();
    let answer = lab.exchange(connection, b"");
    assert!(Response::parse(&answer).0.body == content);
    lab.pass(Duration::from_secs(1));
    assert!(!lab.socket(connection).may_recv(), "and then the server's side is closed");
}

#[test]
fn after_a_refusal_the_connection_ends() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    for (request, code) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 405),
        ("nonsense\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {}", "a".repeat(20_000)), 431),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), 200),
    ] {
        let connection = lab.connect(65536);
        let answer = lab.exchange(connection, request.as_bytes());
        let (response, rest) = Response::parse(&answer);
        assert_eq!((response.code(), response.field("Connection"), rest.len()), (code, Some("close"), 0));
        assert!(!lab.socket(connection).may_recv(), "{code}");
    }
}

#[test]
fn as_many_clients_as_there_are_connections_are_served_together() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content)]);
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| lab.connect(10_000)).collect();
    lab.settle();
    for connection in &connections {
        lab.socket(*connection).send_slice(get("/large").as_bytes()).unwrap();
    }
    lab.settle();
    for connection in connections {
        assert!(Response::parse(&lab.exchange(connection, b"")).0.body == content);
    }
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    for round in 0..2 {
        let silent: Vec<_> = (0..CONNECTIONS).map(|_| lab.connect(65536)).collect();
        lab.settle();
        for (index, connection) in silent.iter().enumerate() {
            let half = if index % 2 == 0 { &b"GET / HT"[..] } else { b"" };
            lab.socket(*connection).send_slice(half).unwrap();
        }
        // The silent ones do not even close when the server does.
        lab.pass(Duration::from_secs(7));
        assert_eq!(lab.ask(&get("/")).body, PAGE, "round {round}");
    }
}

#[test]
fn a_client_that_takes_nothing_is_dropped() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content)]);
    let lazy = lab.connect(1000);
    lab.settle();
    lab.socket(lazy).send_slice(get("/large").as_bytes()).unwrap();
    lab.pass(Duration::from_secs(10));
    assert!(lab.socket(lazy).is_active());
    lab.pass(Duration::from_secs(10));
    assert!(!lab.socket(lazy).is_active());
}

#[test]
fn a_client_that_is_slow_gets_all_of_the_last_response() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content)]);
    let slow = lab.connect(1000);
    lab.settle();
    lab.socket(slow).send_slice(b"GET /large HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while lab.socket(slow).may_recv() {
        lab.pass(Duration::from_secs(3));
        let mut bytes = [0; 1000];
        let len = lab.socket(slow).recv_slice(&mut bytes).unwrap_or(0);
        answer.extend(&bytes[..len]);
    }
    assert!(Response::parse(&answer).0.body == content, "{} bytes came", answer.len());
}

#[test]
fn a_disk_that_fails_ends_the_response_early_and_not_the_server() {
    let content = large();
    let mut lab = Lab::new(&[("large", &content)]);
    lab.disk_fails.set(true);
    let connection = lab.connect(65536);
    lab.exchange(connection, get("/large").as_bytes());
    assert!(!lab.socket(connection).is_active());
    lab.disk_fails.set(false);
    assert!(lab.ask(&get("/large")).body == content);
}

#[test]
fn a_server_without_clients_sleeps_until_a_frame_comes() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    assert_eq!(lab.settle(), None);
    lab.ask(&get("/"));
    lab.pass(Duration::from_secs(30));
    assert_eq!((lab.settle(), lab.clients()), (None, 1));
}

/// So that a frame is not thrown away before anybody looks at the rest of it.
fn correct_checksums(frame: &mut [u8]) {
    let Ok(mut frame) = EthernetFrame::new_checked(frame) else { return };
    let Ok(mut packet) = Ipv4Packet::new_checked(frame.payload_mut()) else { return };
    packet.fill_checksum();
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    if let Ok(mut segment) = TcpPacket::new_checked(packet.payload_mut()) {
        segment.fill_checksum(&from, &to);
    }
}

#[test]
fn frames_that_are_damaged_or_made_up_stop_nothing() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    let mut samples = Vec::new();
    let connection = lab.connect(65536);
    samples.extend(lab.frames());
    lab.settle();
    lab.socket(connection).send_slice(get("/").as_bytes()).unwrap();
    samples.extend(lab.frames());
    lab.settle();
    // Any generator of numbers that are not all alike (Knuth, MMIX).
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..3000 {
        let mut frame = samples[random(samples.len())].clone();
        for _ in 0..=random(4) {
            let at = random(frame.len());
            frame[at] = random(256) as u8;
        }
        if random(8) == 0 {
            frame.truncate(1 + random(frame.len()));
        }
        if random(8) != 0 {
            correct_checksums(&mut frame);
        }
        lab.inject(frame);
    }
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.ask(&get("/")).body, PAGE);
}

#[test]
fn a_client_whose_connection_the_server_ends_has_gone() {
    let mut lab = Lab::new(&[("index.html", PAGE)]);
    for clients in 1..=3 {
        let connection = lab.connect(65536);
        lab.exchange(connection, b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        lab.socket(connection).close();
        lab.pass(Duration::from_millis(100));
        assert_eq!(lab.clients(), clients);
    }
}
