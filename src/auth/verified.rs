//! placeholder
use super::identity::{Identity, Password};
use std::sync::Arc;
#[derive(Debug, Default)]
pub struct Verified;
impl Verified {
    pub fn get(&self, _realm: &str, _user: &str, _password: &Password) -> Option<Arc<Identity>> {
        None
    }
    pub fn put(&self, _r: &str, _u: &str, _p: &Password, _i: Arc<Identity>, _d: std::time::Duration) {}
}
