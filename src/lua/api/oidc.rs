//! `oidc`: what identity providers say about themselves.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use mlua::{LuaString, Table};
use url::Url;

use crate::lua::api::{Author, misuse, module};
use crate::lua::convert;
use crate::lua::fetch::{Hosts, Request};
use crate::lua::keys::{self, Failure, Fetch, Fetched};

module! {
    "oidc" "What identity providers say about themselves.";

    /// The discovery document of an issuer (OpenID Connect Discovery 1.0); nil and `keys_unavailable` when there is none. It
    /// is kept for a while, and the hosts in it may then be reached by `http`.
    #[example("local provider = oidc.discover(conf.issuer)")]
    later fn discover(lua, author, issuer: LuaString) -> ((Option<Table>, Option<&'static str>), "table?, string?") {
        let issuer = issuer.to_str()?.to_owned();
        let web = ProviderWeb::of(&author, &issuer, "oidc.discover")?;
        match author.kit.keys.discover(&issuer, &web).await {
            Ok(found) => {
                let mut hosts = author.hosts.borrow_mut();
                let endpoints = found.document.values().filter_map(|it| Url::parse(it.as_str()?).ok());
                for url in endpoints.filter(|it| it.scheme() == "https" || issuer.starts_with("http:")) {
                    hosts.add(&url);
                }
                convert::object(&lua, &found.document).map(|it| (Some(it), None))
            }
            Err(reason) => Ok((None, Some(reason.as_str()))),
        }
    }
}

/// Fetches the documents of one provider: from the host that a setting names, and from where that one refers to.
pub(super) struct ProviderWeb<'a> {
    author: &'a Author,
    /// A provider on `https` refers to others on `https` alone.
    is_secure: bool,
}

impl<'a> ProviderWeb<'a> {
    /// `url` is what the plugin names; it may do so for hosts that it may reach.
    pub(super) fn of(author: &'a Author, url: &str, function: &str) -> mlua::Result<Self> {
        let parsed = Url::parse(url).ok().filter(|it| author.hosts.borrow().has(it));
        let Some(parsed) = parsed else {
            return Err(misuse(format!("{function}: {url:?} is not a host of a setting of the type `url`")));
        };
        Ok(ProviderWeb { author, is_secure: parsed.scheme() == "https" })
    }
}

impl Fetch for ProviderWeb<'_> {
    async fn fetch(&self, url: &str) -> Result<Fetched, Failure> {
        let url = Url::parse(url).map_err(|it| Failure(it.to_string()))?;
        if self.is_secure && url.scheme() != "https" {
            return Err(Failure("a provider on https refers to one in clear text".into()));
        }
        let mut hosts = Hosts::default();
        hosts.add(&url);
        let request = Request {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(5),
            max_body: keys::LARGEST,
        };
        let response = self.author.kit.send(request, &hosts).await.map_err(|it| Failure(it.to_string()))?;
        if response.status != StatusCode::OK {
            return Err(Failure(format!("the answer was {}", response.status)));
        }
        let cache = response.headers.get(http::header::CACHE_CONTROL).and_then(|it| it.to_str().ok());
        Ok(Fetched { body: response.body.to_vec(), max_age: cache.and_then(keys::max_age) })
    }
}
