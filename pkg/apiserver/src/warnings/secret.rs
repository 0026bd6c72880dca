//! Whether the key of a TLS Secret is that of its certificate (kubernetes, pkg/registry/core/secret/strategy.go; the words are those of
//! Go's `tls.X509KeyPair`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::SignatureAlgorithm;
use rustls::crypto::ring::sign::any_supported_type;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use serde_json::Value;
use x509_parser::parse_x509_certificate;
use x509_parser::pem::Pem;

/// Kinds of public keys, as certificates name them (RFC 3279, RFC 5480, RFC 8410).
const KEYS: [(&str, SignatureAlgorithm); 3] = [
    ("1.2.840.113549.1.1.1", SignatureAlgorithm::RSA),
    ("1.2.840.10045.2.1", SignatureAlgorithm::ECDSA),
    ("1.3.101.112", SignatureAlgorithm::ED25519),
];

/// Secrets.
pub(crate) fn of_secret(secret: &Value, _: bool) -> Vec<String> {
    if secret.get("type").and_then(Value::as_str) != Some("kubernetes.io/tls") {
        return Vec::new();
    }
    let data = |name: &str| {
        let text = secret
            .get("data")
            .and_then(|d| d.get(name))
            .and_then(Value::as_str);
        STANDARD.decode(text.unwrap_or_default()).unwrap_or_default()
    };
    of_pair(&data("tls.crt"), &data("tls.key")).into_iter().collect()
}

fn of_pair(certificate: &[u8], key: &[u8]) -> Option<String> {
    let certificate = match first_block(certificate, |label| label == "CERTIFICATE") {
        Ok(der) => der,
        Err(others) => return Some(no_certificate(&others)),
    };
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let key = match first_block(key, is_key) {
        Ok(der) => der,
        Err(others) => return Some(no_key(&others)),
    };
    let Ok((_, certificate)) = parse_x509_certificate(&certificate) else {
        return Some("x509: malformed certificate".to_string());
    };
    // Whatever the block is called, as in Go.
    let forms = [
        PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(key.as_slice())),
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.as_slice())),
        PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(key.as_slice())),
    ];
    let Some(read) = forms.iter().find_map(|form| any_supported_type(form).ok()) else {
        // It may be a curve, or a length, that Go knows and this library does not.
        return (!is_sequence(&key)).then(|| "tls: failed to parse private key".to_string());
    };
    let public = &certificate.tbs_certificate.subject_pki;
    let oid = public.algorithm.algorithm.to_id_string();
    match KEYS.iter().find(|(known, _)| *known == oid) {
        None => Some("tls: unknown public key algorithm".to_string()),
        Some((_, algorithm)) if *algorithm != read.algorithm() => {
            Some("tls: private key type does not match public key type".to_string())
        }
        Some(_) => {
            let own = read.public_key()?;
            (own.as_ref() != public.raw).then(|| "tls: private key does not match public key".to_string())
        }
    }
}

/// The first block of that label; or the labels of all, where there is none.
fn first_block(pem: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>, Vec<String>> {
    let mut others = Vec::new();
    for block in Pem::iter_from_buffer(pem).flatten() {
        if wanted(&block.label) {
            return Ok(block.contents);
        }
        others.push(block.label);
    }
    Err(others)
}

fn no_certificate(others: &[String]) -> String {
    match others {
        [] => "tls: failed to find any PEM data in certificate input".to_string(),
        [only] if only.ends_with("PRIVATE KEY") => {
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been \
             switched"
                .to_string()
        }
        _ => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
            others.join(" ")
        ),
    }
}

fn no_key(others: &[String]) -> String {
    match others {
        [] => "tls: failed to find any PEM data in key input".to_string(),
        [only] if only == "CERTIFICATE" => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_string()
        }
        _ => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following \
             types: [{}]",
            others.join(" ")
        ),
    }
}

/// Whether this is one DER sequence and nothing else, as any private key is.
fn is_sequence(der: &[u8]) -> bool {
    use x509_parser::der_parser::der::parse_der_sequence;
    parse_der_sequence(der).is_ok_and(|(rest, _)| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_that_of_its_certificate() {
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let of_other_kind = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert!(own.is_compatible(&PKCS_ECDSA_P256_SHA256));
        let certificate = CertificateParams::default().self_signed(&own).unwrap().pem();
        let said = |certificate: &str, key: &str| {
            let data = json!({"tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key)});
            of_secret(&json!({"type": "kubernetes.io/tls", "data": data}), true)
        };
        let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let block = "-----BEGIN X-----\nAAAA\n-----END X-----\n";
        let key = own.serialize_pem();
        for (certificate, key, words) in [
            (&*certificate, &*key, ""),
            (
                &certificate,
                &other.serialize_pem(),
                "tls: private key does not match public key",
            ),
            (
                &certificate,
                &of_other_kind.serialize_pem(),
                "tls: private key type does not match public key type",
            ),
            (&certificate, "", "tls: failed to find any PEM data in key input"),
            ("x", &key, "tls: failed to find any PEM data in certificate input"),
            (&certificate, garbage, "tls: failed to parse private key"),
            (
                &certificate,
                &certificate,
                "tls: found a certificate rather than a key in the PEM for the private key",
            ),
            (
                &key,
                &key,
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched",
            ),
            (
                block,
                &key,
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [X]",
            ),
            (
                &certificate,
                block,
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [X]",
            ),
        ] {
            let words: Vec<&str> = Some(words).filter(|w| !w.is_empty()).into_iter().collect();
            assert_eq!(said(certificate, key), words);
        }
        let opaque = json!({"type": "Opaque", "data": {"tls.crt": "eA=="}});
        assert!(of_secret(&opaque, true).is_empty());
    }
}
