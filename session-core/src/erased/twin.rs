//! Writes the object-safe twin of a trait from one list of its methods.
//!
//! Each macro has the pattern of that list once more, because a macro cannot be called in the place of a pattern.

/// Declares the twin in brackets, implements it for every type of the trait behind `of`, and implements that trait again
/// for each `dyn` behind `for` and for every `Arc` and `Box`.
///
/// The list in braces says which method of the trait has which name in the twin. Those under `async` have boxed futures
/// there.
macro_rules! twin {
    ($twin:ident of $trait:ident for $(dyn $object:ident),+; $declaration:tt $methods:tt) => {
        declare_twin!($declaration $methods);
        implement_twin!([impl<T: $trait> $twin for T] $methods);
        $(forward_to_twin!([impl $trait for dyn $object] $methods);)+
        forward_to_target!([impl<T: $trait + ?Sized> $trait for std::sync::Arc<T>] $methods);
        forward_to_target!([impl<T: $trait + ?Sized> $trait for Box<T>] $methods);
    };
}

/// Declares the twin whose head is in brackets: the same methods, with boxed futures.
macro_rules! declare_twin {
    (
        [$($head:tt)*]
        {
            async { $($of:ident::$method:ident = $twin:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }
            plain { $($plain_of:ident::$plain:ident = $plain_twin:ident($($plain_arg:ident: $plain_type:ty),*) -> $plain_result:ty;)* }
        }
    ) => {
        #[async_trait]
        $($head)* {
            $(
                #[doc = concat!("See [`", stringify!($of), "::", stringify!($method), "`].")]
                async fn $twin(&self, $($arg: $type),*) -> $result;
            )*
            $(
                #[doc = concat!("See [`", stringify!($plain_of), "::", stringify!($plain), "`].")]
                fn $plain_twin(&self, $($plain_arg: $plain_type),*) -> $plain_result;
            )*
        }
    };
}

/// Implements the twin by the trait, for every type that implements the trait.
macro_rules! implement_twin {
    (
        [$($head:tt)*]
        {
            async { $($of:ident::$method:ident = $twin:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }
            plain { $($plain_of:ident::$plain:ident = $plain_twin:ident($($plain_arg:ident: $plain_type:ty),*) -> $plain_result:ty;)* }
        }
    ) => {
        #[async_trait]
        $($head)* {
            $(
                async fn $twin(&self, $($arg: $type),*) -> $result {
                    $of::$method(self, $($arg),*).await
                }
            )*
            $(
                fn $plain_twin(&self, $($plain_arg: $plain_type),*) -> $plain_result {
                    $plain_of::$plain(self, $($plain_arg),*)
                }
            )*
        }
    };
}

/// Implements the trait by its twin, for a `dyn` of the twin.
macro_rules! forward_to_twin {
    (
        [$($head:tt)*]
        {
            async { $($of:ident::$method:ident = $twin:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }
            plain { $($plain_of:ident::$plain:ident = $plain_twin:ident($($plain_arg:ident: $plain_type:ty),*) -> $plain_result:ty;)* }
        }
    ) => {
        #[deny(clippy::missing_trait_methods)]
        $($head)* {
            $(
                async fn $method(&self, $($arg: $type),*) -> $result {
                    self.$twin($($arg),*).await
                }
            )*
            $(
                fn $plain(&self, $($plain_arg: $plain_type),*) -> $plain_result {
                    self.$plain_twin($($plain_arg),*)
                }
            )*
        }
    };
}

/// Implements the trait for a pointer to a type that implements it.
macro_rules! forward_to_target {
    (
        [$($head:tt)*]
        {
            async { $($of:ident::$method:ident = $twin:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }
            plain { $($plain_of:ident::$plain:ident = $plain_twin:ident($($plain_arg:ident: $plain_type:ty),*) -> $plain_result:ty;)* }
        }
    ) => {
        #[deny(clippy::missing_trait_methods)]
        $($head)* {
            $(
                async fn $method(&self, $($arg: $type),*) -> $result {
                    (**self).$method($($arg),*).await
                }
            )*
            $(
                fn $plain(&self, $($plain_arg: $plain_type),*) -> $plain_result {
                    (**self).$plain($($plain_arg),*)
                }
            )*
        }
    };
}
