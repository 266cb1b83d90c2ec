use super::*;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

const NODE: &str = "0x00000000000000000000000000000000000000Ab";

/// A key that signs certificates and descriptors.
struct Signing(Ed25519KeyPair);

impl Signing {
    fn new() -> Signing {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Signing(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    fn public(&self) -> Value {
        let parameters = json!({"scheme": "Ed25519"});
        json!({"algorithm": "EdDSA", "key": hex(self.0.public_key().as_ref()), "parameters": parameters})
    }

    fn sign(&self, value: &Value, signer: Value) -> Value {
        let text = serde_json_canonicalizer::to_vec(value).unwrap();
        let value = hex(self.0.sign(&text).as_ref());
        json!({"algorithm": {"hash": "sha512", "encryption": "EdDSA"}, "value": value, "signer": signer})
    }
}

/// A chain of two certificates and a descriptor; a test may change each of them before it is signed.
struct Chain {
    root: Value,
    leaf: Value,
    node: Value,
    keys: [Signing; 2],
}

impl Chain {
    fn new() -> Chain {
        let keys = [Signing::new(), Signing::new()];
        let period = |from: &str, to: &str| json!({"notBefore": from, "notAfter": to});
        let certificate = |key: &Signing, usage: Value, period: Value| {
            json!({
                "keyUsage": usage, "permissions": "all", "publicKey": key.public(), "validityPeriod": period,
                "subject": {"displayName": "one", "contact": {"email": "one@example.org"}},
            })
        };
        Chain {
            root: certificate(&keys[0], json!("all"), period("2000-01-01T00:00:00Z", "2040-01-01T00:00:00Z")),
            leaf: certificate(&keys[1], json!(["signNode"]), period("2001-01-01T00:00:00Z", "2039-01-01T00:00:00Z")),
            node: json!({
                "nodeId": NODE, "permissions": {"outbound": {"urls": ["https://good.test"]}},
                "validityPeriod": period("2002-01-01T00:00:00Z", "2038-01-01T00:00:00Z"),
            }),
            keys,
        }
    }

    fn signed(&self) -> Value {
        let wrapped = |certificate: &Value, signature: Value| json!({"$schema": CERTIFICATE_SCHEMA, "certificate": certificate, "signature": signature});
        let root = wrapped(&self.root, self.keys[0].sign(&self.root, json!("self")));
        let leaf = wrapped(&self.leaf, self.keys[0].sign(&self.leaf, root));
        let signature = self.keys[1].sign(&self.node, leaf);
        json!({"$schema": DESCRIPTOR_SCHEMA, "nodeDescriptor": self.node, "signature": signature})
    }

    fn read(&self) -> Result<Descriptor, DescriptorError> {
        read(&self.signed())
    }
}

fn read(value: &Value) -> Result<Descriptor, DescriptorError> {
    Descriptor::read(&serde_json::to_vec_pretty(value).unwrap(), "2026-11-29T00:00:00Z".parse().unwrap())
}

#[track_caller]
fn refused(value: &Value, words: &str) {
    let error = read(value).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
fn a_sound_descriptor_says_who_may_ask_for_what() {
    let chain = Chain::new();
    let descriptor = chain.read().unwrap();
    assert_eq!(descriptor.node_id, NODE.to_ascii_lowercase());
    let urls = HashSet::from([Url::parse("https://good.test/").unwrap()]);
    assert_eq!(descriptor.permissions, Permissions::Details(Details { outbound: Some(Outbound::Urls(urls)) }));
    let of =
        |certificate: &Value| hex(digest(&SHA512, &serde_json_canonicalizer::to_vec(certificate).unwrap()).as_ref());
    assert_eq!(descriptor.fingerprints, [of(&chain.leaf), of(&chain.root)]);
}

#[test]
fn whatever_is_changed_after_it_was_signed_is_noticed() {
    let signed = Chain::new().signed();
    let places = [
        "/nodeDescriptor/nodeId",
        "/nodeDescriptor/validityPeriod/notAfter",
        "/signature/signer/certificate/subject/displayName",
        "/signature/signer/signature/signer/certificate/subject/contact/email",
    ];
    for place in places {
        let mut changed = signed.clone();
        let text = changed.pointer_mut(place).unwrap();
        *text = json!(text.as_str().unwrap().replacen(['1', '2', 'n', 'x'], "3", 1));
        refused(&changed, "Invalid signature");
    }
    for place in
        ["/signature/value", "/signature/signer/signature/value", "/signature/signer/signature/signer/signature/value"]
    {
        let mut changed = signed.clone();
        let text = changed.pointer_mut(place).unwrap();
        let first = if text.as_str().unwrap().starts_with('0') { "1" } else { "0" };
        *text = json!(format!("{first}{}", &text.as_str().unwrap()[1..]));
        refused(&changed, "Invalid signature");
        *changed.pointer_mut(place).unwrap() = json!("00");
        refused(&changed, "Invalid signature value");
    }
}

#[test]
fn nobody_gives_away_more_than_he_has() {
    let changed = |change: &dyn Fn(&mut Chain)| {
        let mut chain = Chain::new();
        change(&mut chain);
        chain.signed()
    };
    let urls = || json!({"outbound": {"urls": ["https://other.test"]}});
    for (change, words) in [
        (&(|chain: &mut Chain| chain.leaf["permissions"] = urls()) as &dyn Fn(&mut Chain), "Permissions extended"),
        (&|chain| chain.leaf["permissions"] = json!({}), "Permissions extended"),
        (&|chain| chain.root["permissions"] = urls(), "Permissions extended"),
        (
            &|chain| {
                chain.leaf["permissions"] = urls();
                chain.node["permissions"] = json!({"outbound": "unrestricted"})
            },
            "Permissions extended",
        ),
        (&|chain| chain.leaf["keyUsage"] = json!(["signManifest"]), "cannot sign Node Descriptor"),
        (&|chain| chain.root["keyUsage"] = json!(["signNode"]), "Certificate signing not permitted"),
        (&|chain| chain.root["keyUsage"] = json!(["signCertificate"]), "Key usage extended"),
        (&|chain| chain.leaf["validityPeriod"]["notAfter"] = json!("2041-01-01T00:00:00Z"), "Validity period extended"),
        (
            &|chain| chain.node["validityPeriod"]["notBefore"] = json!("2000-06-01T00:00:00Z"),
            "Validity period extended",
        ),
        (
            &|chain| chain.node["validityPeriod"]["notAfter"] = json!("2025-01-01T00:00:00Z"),
            "Expired: was valid to 2025-01-01",
        ),
        (
            &|chain| chain.node["validityPeriod"]["notBefore"] = json!("2027-01-01T00:00:00Z"),
            "Not valid yet: will be valid from 2027-01-01",
        ),
    ] {
        refused(&changed(change), words);
    }
    let permitted = changed(&|chain| chain.node["permissions"] = json!({}));
    assert_eq!(read(&permitted).unwrap().permissions, Permissions::Details(Details { outbound: None }));
}

#[test]
fn other_forms_cut_and_large_input_are_refused_in_words() {
    let signed = Chain::new().signed();
    let text = serde_json::to_vec(&signed).unwrap();
    let now = "2026-11-29T00:00:00Z".parse().unwrap();
    for cut in (0..text.len()).step_by(7) {
        assert!(matches!(Descriptor::read(&text[..cut], now), Err(DescriptorError::Json(_))), "cut at {cut}");
    }
    let mut other = signed.clone();
    other["$schema"] = json!("https://example.org/v2");
    refused(&other, "Unsupported schema for structure node descriptor: https://example.org/v2");
    let mut more = signed.clone();
    more["more"] = json!(1);
    refused(&more, "does not conform to schema");
    assert!(matches!(Descriptor::read(&vec![b' '; (MAX_INPUT + 1) as usize], now), Err(DescriptorError::TooLarge)));
    // A chain with more links than any real one.
    let chain = Chain::new();
    let mut signer = json!("self");
    for _ in 0..=MAX_CHAIN {
        let signature = chain.keys[0].sign(&chain.root, signer);
        signer = json!({"$schema": CERTIFICATE_SCHEMA, "certificate": chain.root, "signature": signature});
    }
    let signature = chain.keys[0].sign(&chain.node, signer);
    refused(&json!({"$schema": DESCRIPTOR_SCHEMA, "nodeDescriptor": chain.node, "signature": signature}), "too large");
}
