//! TLS by rustls.

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ConnectError;

/// Certificates in PEM form.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    pub(super) root: Option<Vec<u8>>,
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// In the driver's form, which takes text without a certificate for no certificate to trust.
    pub(super) fn for_driver(&self) -> Result<TlsCertificates, ConnectError> {
        let Self { root, client } = self.clone();
        if root
            .as_deref()
            .is_some_and(|pem| !matches!(CertificateDer::pem_slice_iter(pem).next(), Some(Ok(_))))
        {
            return Err(ConnectError::Config("root_certificates are not certificates in PEM form".into()));
        }
        let client = client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        Ok(TlsCertificates { client_tls: client, root_cert: root })
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
