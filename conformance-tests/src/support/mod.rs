//! Tools that the tests of this workspace share: the simulator, the soak and the tests of networks.

pub mod linearize;
pub mod proxy;
