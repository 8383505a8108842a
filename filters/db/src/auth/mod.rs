//! Who a client is, and who the sidecar is for a server.
//!
//! ```text
//! let tls = ServerTls::open(&settings.tls, Within::Postgres)?; // certificates and users are followed, and are right after a change
//! let users = Users::open(&settings.auth, way)?;
//! // After `S` was said, or for a TLS handshake without a request:
//! let mut client = accept_tls(stream, already_read, Begun::Requested, &tls, deadline).await?;
//! match authenticate(&mut client, &mut inbox, &startup.user, &users, deadline).await {
//!     Ok(identity) => …,                                     // AuthenticationOk is for the listener to say
//!     Err(error) => error.write(&mut to_client),             // then the end
//! }
//! let login = Login { user, database, parameters: &[…], identity: &identity, server: &address, tls: &to_server };
//! let LoggedIn { stream, parameters, process, secret, rest } = login(connect(…).await?, &login, deadline).await?;
//! ```

mod binding;
mod client;
mod exchange;
mod login;
mod query;
pub mod scram;
mod secret;
mod settings;
mod stream;
mod tls;
mod userlist;
mod users;
mod verify;

pub use client::{AuthError, authenticate};
pub use exchange::fuzz_login;
pub use login::{LoggedIn, Login, LoginError, login};
pub use query::Way;
pub use secret::{Identity, Md5Hash, Password};
pub use settings::{AuthSettings, ClientTlsSettings, Method, ServerTlsMode, ServerTlsSettings};
pub use stream::{Begun, SecureStream, accept_tls, connect_tls, connect_tls_at_once};
pub use tls::{ClientTls, ServerTls, TlsError, Within};
pub use userlist::fuzz_users;
pub use users::Users;
