//! `ip`: addresses and networks.

use std::net::IpAddr;

use ipnet::IpNet;
use mlua::{LuaString, Table};

use crate::config::network;
use crate::lua::api::{misuse, module, object};

/// Some networks.
pub(crate) struct IpSet(Vec<IpNet>);

/// Most networks of a set.
const MOST: usize = 10_000;

module! {
    "ip" "Addresses and networks (CIDR, RFC 4632). An IPv4 address that comes as IPv6 counts as IPv4.";

    /// A set of addresses and networks; an error names what is neither. Do it once, while the plugin is loaded.
    #[example("local inside = ip.set { \"10.0.0.0/8\", \"::1\" }")]
    now fn set(lua, author, networks: Table) -> (IpSet, "streamgate.Set") {
        let mut set = Vec::new();
        for text in networks.sequence_values::<LuaString>() {
            let text = text?;
            let network = network(&text.to_string_lossy());
            set.push(network.ok_or_else(|| misuse(format!("ip.set: {:?} is no address and no network", text.to_string_lossy())))?);
            if set.len() > MOST {
                return Err(misuse(format!("ip.set: more than {MOST} networks")));
            }
        }
        Ok(IpSet(set))
    }

    /// Whether a text is an address or a network.
    #[example("if not ip.is_valid(text) then … end")]
    now fn is_valid(lua, author, text: LuaString) -> (bool, "boolean") {
        Ok(network(&text.to_string_lossy()).is_some())
    }
}

object! {
    IpSet "set";

    /// Whether an address is in it; false for what is no address.
    #[example("if inside:has(request:client_ip()) then … end")]
    fn has(lua, this, address: LuaString) -> (bool, "boolean") {
        let address = address.to_str().ok().and_then(|it| it.parse::<IpAddr>().ok());
        Ok(address.is_some_and(|it| this.0.iter().any(|network| network.contains(&it.to_canonical()))))
    }
}
