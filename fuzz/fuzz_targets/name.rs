//! Host names, hosts and targets: canonical text reads as itself, and no name is anyone's address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_proto::identify::http::HostPort;
use outgate_proto::name::{HostName, MAX_LABEL, MAX_NAME};
use outgate_proto::target::{Host, Target};
use std::net::{IpAddr, ToSocketAddrs};

fuzz_target!(|data: &[u8]| {
    if let Ok(name) = HostName::parse(data) {
        let text = name.as_str();
        assert_eq!(HostName::parse(text).as_ref(), Ok(&name));
        assert_eq!(HostName::parse(data.to_ascii_uppercase()).as_ref(), Ok(&name));
        assert_eq!(HostName::parse_unicode(text).as_ref(), Ok(&name));
        assert!(!text.is_empty() && text.len() <= MAX_NAME && !text.ends_with('.'));
        assert!(name.labels().all(|label| !label.is_empty() && label.len() <= MAX_LABEL));
        assert!(text.parse::<IpAddr>().is_err());
        assert_eq!(Host::parse(data), Ok(Host::Name(name)));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(name) = HostName::parse_unicode(text)
    {
        assert_eq!(HostName::parse(name.as_str()), Ok(name));
    }
    if let Ok(host) = Host::parse(data) {
        assert_eq!(Host::parse(host.to_string().as_bytes()), Ok(host));
    }
    if let Ok(target) = Target::parse(data, None) {
        assert!(target.port != 0);
        assert_eq!(Target::parse(target.to_string().as_bytes(), None).as_ref(), Ok(&target));
        assert_eq!(Target::parse(data, Some(1)).as_ref(), Ok(&target));
        let written = HostPort::parse(data).expect("a target is a Host field");
        assert_eq!((written.host, written.port), (target.host.clone(), Some(target.port)));
        if let Host::Addr(address) = target.host {
            let read = target.to_string().to_socket_addrs().map(|mut all| all.next());
            assert_eq!(read.ok().flatten(), Some((address, target.port).into()));
        }
    }
});
