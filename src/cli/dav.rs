//! `dav`: shows whether WebDAV is on, makes its password, and turns it off.

use clap::Subcommand;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use crate::api::dav::{DavPassword, DavView};
use crate::api::requests::NoArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum DavCommand {
    /// Turn it on with a new password, in place of the earlier one; it is shown once
    Password,
    /// Turn it off; the password is worthless from then on
    Off,
}

/// `can-sync dav`
pub(crate) async fn dav(
    client: &Client,
    command: Option<DavCommand>,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        None => {
            let view: DavView = client.get(&["v1", "dav"], &[]).await?;
            output.value(&view, |view| match view.is_on {
                true => format!("WebDAV is on.\n{}", ways(view)),
                false => "WebDAV is off. `can-sync dav password` turns it on.".to_owned(),
            })?;
        }
        Some(DavCommand::Password) => {
            let made: DavPassword =
                client.post(&["v1", "dav", "password"], &NoArguments {}).await?;
            output.value(&made, |made| {
                format!("{}\npassword  {}", ways(&made.view), made.password)
            })?;
            output.note("The password is not kept and cannot be shown again.");
        }
        Some(DavCommand::Off) => {
            let view: DavView = client.delete(&["v1", "dav"]).await?;
            output.value(&view, |_| "WebDAV is off.".to_owned())?;
        }
    }
    Ok(Exit::Ok)
}

/// The lines with the addresses of WebDAV and the user name.
fn ways(view: &DavView) -> String {
    let mut lines = vec![format!("url       {}", view.url)];
    if let (Some(address), Some(fingerprint)) = (view.listens, &view.fingerprint) {
        lines.push(format!("network   https://{address}/dav/"));
        lines.push(format!("SHA-256   {fingerprint}"));
    }
    lines.push(format!("user      {}", view.user));
    lines.join("\n")
}
