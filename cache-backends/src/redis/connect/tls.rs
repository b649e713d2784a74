//! TLS by rustls.

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ConnectError;

/// Certificates in PEM form.
#[derive(Clone, Default)]
pub(in crate::redis) struct Certificates {
    /// The certification authorities to trust instead of the system's.
    pub(in crate::redis) root: Option<Vec<u8>>,
    /// The certificate of this client, and its key.
    pub(in crate::redis) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Returns the certificates in the driver's form. Refuses text without a certificate, because the driver
    /// would trust no certificate then.
    pub(in crate::redis) fn for_driver(&self) -> Result<TlsCertificates, ConnectError> {
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

/// Installs *ring* as the cryptography provider of the process, unless the application has installed one.
///
/// rustls has one provider for a whole process, and panics without one. Call this just before the first
/// connection, so that the application had the time to install its own.
pub(super) fn install_crypto_provider() {
    if CryptoProvider::get_default().is_none() {
        // This fails if another thread has just installed one, which is as good.
        ring::default_provider().install_default().ok();
    }
}
