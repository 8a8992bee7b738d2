//! DNS-01 by the API of Ovh.

use async_trait::async_trait;

use super::dns::{Error, Fault, Provider, Record};
use crate::config;

#[derive(Debug)]
pub struct Ovh;

impl Ovh {
    pub fn from_config(_: &config::Dns) -> Result<Ovh, Error> {
        Err(Error::new(Fault::Settings, "this provider is not built in so far", "use exec"))
    }
}

#[async_trait]
impl Provider for Ovh {
    async fn publish(&self, _: &Record) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &Record) -> Result<(), Error> {
        Ok(())
    }
}
