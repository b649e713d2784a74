use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// The way in which the layer makes the body of its own responses. [`SameBody`] or [`AnyBody`]; chosen by
/// [`SessionLayer::any_body`](super::SessionLayer::any_body).
pub trait ErrorBody<B>: sealed::Sealed {
    /// The body of the layer's responses.
    type Body;

    #[doc(hidden)]
    fn keep(body: B) -> Self::Body;

    #[doc(hidden)]
    fn explain(text: &'static str) -> Self::Body;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::SameBody {}
    impl Sealed for super::AnyBody {}
}

/// Keeps the body of the service inside, which must be `From<Bytes>`, as axum's and `http_body_util::Full` are. Costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct SameBody;

/// Wraps any body into a [`SessionBody`].
#[derive(Clone, Copy, Debug)]
pub struct AnyBody;

impl<B: From<Bytes>> ErrorBody<B> for SameBody {
    type Body = B;

    fn keep(body: B) -> B {
        body
    }

    fn explain(text: &'static str) -> B {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl<B> ErrorBody<B> for AnyBody {
    type Body = SessionBody<B>;

    fn keep(body: B) -> SessionBody<B> {
        SessionBody { kind: Kind::Inner { body } }
    }

    fn explain(text: &'static str) -> SessionBody<B> {
        SessionBody { kind: Kind::Text { text: Bytes::from_static(text.as_bytes()) } }
    }
}

pin_project! {
    /// The body of the service inside, or the text of an error of the session.
    #[derive(Debug)]
    pub struct SessionBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Text { text: Bytes },
    }
}

impl<B: Default> Default for SessionBody<B> {
    fn default() -> Self {
        AnyBody::keep(B::default())
    }
}

impl<B: Body<Data = Bytes>> Body for SessionBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProjection::Inner { body } => body.poll_frame(context),
            KindProjection::Text { text } if text.is_empty() => Poll::Ready(None),
            KindProjection::Text { text } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Text { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Text { text } => SizeHint::with_exact(u64::try_from(text.len()).unwrap_or(u64::MAX)),
        }
    }
}
