//! placeholder
use super::identity::Identity;
use crate::config::Auth;
use std::sync::Arc;
#[derive(Clone, Debug)]
pub struct Visitor {
    pub identity: Arc<Identity>,
}
impl Visitor {
    pub fn new(identity: Arc<Identity>, _auth: &Auth) -> Visitor {
        Visitor { identity }
    }
}
