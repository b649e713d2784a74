//! TLS by rustls.

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};

/// Certificates in PEM form.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    pub(super) root: Option<Vec<u8>>,
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    pub(super) fn into_driver(self) -> TlsCertificates {
        let client = self.client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        TlsCertificates { client_tls: client, root_cert: self.root }
    }
}

/// rustls wants one cryptography for the whole process, and panics when nobody has chosen one. What the application has
/// chosen stays; this comes just before the first connection, so that it had the time to choose.
pub(super) fn choose_cryptography() {
    if CryptoProvider::get_default().is_none() {
        // Somebody else may have been faster; that is as good.
        ring::default_provider().install_default().ok();
    }
}
