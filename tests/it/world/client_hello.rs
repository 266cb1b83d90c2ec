//! ClientHellos byte by byte (RFC 8446 §4.1.2), also hostile ones, and other TLS messages that tests
//! forge.

/// Builds a ClientHello.
#[derive(Clone, Default)]
pub struct Hello {
    extensions: Vec<(u16, Vec<u8>)>,
    post_quantum: bool,
}

/// The server_name extension (RFC 6066 §3).
const SERVER_NAME: u16 = 0;
/// The encrypted_client_hello extension (RFC 9849).
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

impl Hello {
    /// A hello without a server name.
    pub fn nameless() -> Hello {
        Hello::default()
    }

    /// A hello with these bytes for a server name.
    pub fn naming(name: impl AsRef<[u8]>) -> Hello {
        Hello::nameless().names(&[name.as_ref()])
    }

    /// Adds a server_name extension with several host_name entries.
    pub fn names(self, names: &[&[u8]]) -> Hello {
        let entries: Vec<(u8, &[u8])> = names.iter().map(|name| (0, *name)).collect();
        self.entries(&entries)
    }

    /// Adds a server_name extension with entries of any name type.
    pub fn entries(self, entries: &[(u8, &[u8])]) -> Hello {
        let mut list = Vec::new();
        for (kind, name) in entries {
            list.push(*kind);
            list.extend(sized16(name));
        }
        self.extension(SERVER_NAME, sized16(&list))
    }

    /// Adds encrypted_client_hello in the form of an outer hello.
    pub fn ech(self) -> Hello {
        let mut body = vec![0, 0, 1, 0, 1, 42];
        body.extend(sized16(&[7; 32]));
        body.extend(sized16(&[9; 144]));
        self.extension(ENCRYPTED_CLIENT_HELLO, body)
    }

    /// Adds any extension.
    pub fn extension(mut self, kind: u16, body: Vec<u8>) -> Hello {
        self.extensions.push((kind, body));
        self
    }

    /// With a key share for X25519MLKEM768, as browsers send: about 1,800 bytes in all.
    pub fn post_quantum(mut self) -> Hello {
        self.post_quantum = true;
        self
    }

    /// The handshake message, without record header.
    pub fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([0x5a; 32]);
        body.push(32);
        body.extend([0xa5; 32]);
        body.extend(sized16(&[0x13, 0x01, 0x13, 0x02, 0xc0, 0x2f]));
        body.extend([1, 0]);
        let mut extensions = Vec::new();
        let mut add = |kind: u16, body: &[u8]| {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(sized16(body));
        };
        for (kind, body) in &self.extensions {
            add(*kind, body);
        }
        add(43, &[2, 3, 4]);
        // P-384 without a key share: a server may ask for one (RFC 8446 §4.1.4).
        add(10, &sized16(&[0x11, 0xec, 0x00, 0x1d, 0x00, 0x18]));
        add(13, &sized16(&[4, 3, 8, 4]));
        let mut shares = Vec::new();
        if self.post_quantum {
            shares.extend([0x11, 0xec]);
            shares.extend(sized16(&[0x42; 1216]));
        }
        shares.extend([0x00, 0x1d]);
        shares.extend(sized16(&[0x24; 32]));
        add(51, &sized16(&shares));
        body.extend(sized16(&extensions));

        let mut message = vec![1];
        message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    /// The hello in one record.
    pub fn record(&self) -> Vec<u8> {
        record(22, &self.message())
    }

    /// The hello in records of this many bytes each.
    pub fn records_of(&self, size: usize) -> Vec<u8> {
        in_records_of(size, &self.message())
    }
}

/// A handshake message in records of this many bytes each.
pub fn in_records_of(size: usize, message: &[u8]) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| record(22, piece)).collect()
}

/// One TLS record.
pub fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &sized16(body)].concat()
}

/// A ServerHello that asks for another hello (RFC 8446 §4.1.4), in a record.
pub fn hello_retry_request() -> Vec<u8> {
    /// SHA-256 of "HelloRetryRequest", which stands for the random value.
    const RANDOM: [u8; 32] = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2,
        0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    ];
    let mut body = vec![3, 3];
    body.extend(RANDOM);
    body.push(32);
    body.extend([0xa5; 32]);
    body.extend([0x13, 0x01, 0]);
    body.extend(sized16(&[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0x00, 0x17]));
    let mut message = vec![2];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    record(22, &message)
}

/// The description of the last fatal alert record at the end of `bytes`.
pub fn alert(bytes: &[u8]) -> Option<u8> {
    match bytes.get(bytes.len().checked_sub(7)?..)? {
        [21, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

fn sized16(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("under 64 KiB");
    [&length.to_be_bytes(), body].concat()
}
