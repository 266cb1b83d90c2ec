use super::responses::{GUEST, OLD_GUEST};
use super::*;
use proptest::prelude::*;

/// Valid and odd pieces of heads, combined at random.
fn any_head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET / HTTP/1.1",
        "GET /a?b HTTP/1.0",
        "POST http://good.test/x HTTP/1.1",
        "CONNECT good.test:443 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET  / HTTP/1.1",
        "",
    ]);
    let field = prop_oneof![
        8 => prop::sample::select(vec![
            "Host: good.test", "Host: good.test:80", "Host: evil.test", "Accept: */*", "Cookie: a=b", "X-C: c",
            "Content-Length: 3", "Content-Length: 0", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip",
            "Connection: close", "Connection: X-A, keep-alive", "Connection: upgrade", "Upgrade: websocket",
            "Upgrade: h2c", "Expect: 100-continue", "Trailer: A", "X-A: 1", "X-B:\t2 ", "TE: trailers", " fold",
        ]).prop_map(str::to_owned),
        1 => "[ -~]{0,12}",
        1 => "[A-Z]{1,4}: [\\PC\t]{0,6}",
    ];
    let end = prop::sample::select(vec!["\r\n"; 60].into_iter().chain(["\n", "\r", "\r\r\n"]).collect::<Vec<_>>());
    let shape = (prop::bool::weighted(0.7), prop::bool::weighted(0.9));
    (line, prop::collection::vec((field, end), 0..6), shape).prop_map(|(line, fields, (named, whole))| {
        let mut head = format!("{line}\r\n");
        if named {
            head += "Host: good.test\r\n";
        }
        for (field, end) in fields {
            head += &field;
            head += end;
        }
        if whole {
            head += "\r\nrest";
        }
        head.into_bytes()
    })
}

/// What hyper, as a server, read from a head: method, target, host, content-length, chunked.
async fn hyper_reads(head: Vec<u8>) -> Option<(String, String, Vec<u8>, Body)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (tell, told) = std::sync::mpsc::channel();
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let field = |name: &str| request.headers().get(name).map(|value| value.as_bytes().to_vec());
        let body = match (field("transfer-encoding"), field("content-length")) {
            (Some(_), _) => Body::Chunked,
            (None, Some(length)) => Body::Length(String::from_utf8(length).unwrap().parse().unwrap()),
            (None, None) => Body::None,
        };
        let seen = (request.method().to_string(), request.uri().to_string(), field("host").unwrap_or_default(), body);
        let _ = tell.send(seen);
        async { Err::<hyper::Response<String>, _>(std::io::Error::other("seen")) }
    });
    let server =
        hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(far), service);
    let client = async move {
        let (mut read, mut write) = tokio::io::split(near);
        write.write_all(&head).await.unwrap();
        write.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
    };
    let _ = tokio::join!(server, client);
    told.try_recv().ok()
}

proptest! {
    #[test]
    fn no_split_changes_what_a_head_means(head in any_head(), mut cuts in prop::collection::vec(0usize..200, 0..6)) {
        cuts.sort_unstable();
        let whole = seen(outcome(RequestHead::parse(&head, 0)));
        prop_assert_eq!(seen(in_pieces(&head, cuts.iter().copied())), whole.clone());
        prop_assert_eq!(seen(in_pieces(&head, 0..head.len())), whole);
    }

    #[test]
    fn what_is_written_reads_as_what_was_read(head in any_head()) {
        if let Ok(Parsed::Complete { head, .. }) = RequestHead::parse(&head, 0) {
            let mut first = Vec::new();
            head.write_request(&mut first);
            let Ok(Parsed::Complete { head: again, len }) = RequestHead::parse(&first, 0) else { panic!() };
            prop_assert_eq!(len, first.len());
            prop_assert_eq!(again.method, head.method);
            prop_assert_eq!((again.body, again.upgrade, again.expect_continue),
                (head.body, head.upgrade, head.expect_continue));
            prop_assert_eq!(again.destination(80), head.destination(80));
            let mut second = Vec::new();
            again.write_request(&mut second);
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn hyper_reads_what_we_accept_in_the_same_way(head in any_head()) {
        if let Ok(Parsed::Complete { head: ours, len }) = RequestHead::parse(&head, 0)
            && ours.method != b"CONNECT"
        {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let theirs = runtime.block_on(hyper_reads(head[..len].to_vec()));
            let (method, uri, host, body) = theirs.expect("hyper takes what we take");
            prop_assert_eq!(method.as_bytes(), ours.method);
            prop_assert_eq!(body, ours.body);
            let host = (!host.is_empty()).then(|| HostPort::parse(&host).unwrap());
            prop_assert_eq!(&host, &ours.host);
            let target = match &ours.target {
                RequestTarget::Authority(target) => target.to_string(),
                RequestTarget::Absolute { target, path_and_query } => {
                    format!("http://{}{}", target.host, std::str::from_utf8(path_and_query).unwrap())
                }
                RequestTarget::Origin(path) => String::from_utf8(path.to_vec()).unwrap(),
                RequestTarget::Asterisk => "*".to_owned(),
            };
            prop_assert_eq!(uri, target);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), scanned in 0usize..400) {
        let _ = RequestHead::parse(&bytes, scanned);
        let _ = ResponseHead::parse(&bytes, scanned);
    }

    #[test]
    fn responses_read_again_as_they_were_written(
        status in 100u16..600,
        fields in prop::collection::vec(prop::sample::select(vec![
            "Content-Length: 3", "Transfer-Encoding: chunked", "Connection: close", "Connection: X-A", "X-A: 1",
            "Set-Cookie: a", "Upgrade: websocket", "Connection: upgrade", "Trailer: A", "Proxy-Status: x",
        ]), 0..5),
        method in prop::sample::select(vec!["GET", "HEAD"]),
        old in any::<bool>(),
    ) {
        let lines: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let text = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        if let Ok(Parsed::Complete { head, .. }) = ResponseHead::parse(text.as_bytes(), 0) {
            let mut out = Vec::new();
            let body = head.body_for(method.as_bytes());
            let sent = head.write_response(body, if old { OLD_GUEST } else { GUEST }, &mut out);
            let Ok(Parsed::Complete { head: again, len }) = ResponseHead::parse(&out, 0) else { panic!() };
            prop_assert_eq!(len, out.len());
            prop_assert_eq!(again.body_for(method.as_bytes()), sent.body);
            if !head.is_interim() && head.upgrade.is_none() && head.status >= 200 {
                prop_assert_eq!(again.keep_alive(method.as_bytes()), sent.keep_alive);
            }
            prop_assert!(!String::from_utf8(out).unwrap().contains("Proxy-Status"));
        }
    }
}
