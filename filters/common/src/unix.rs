//! A listening Unix domain socket that owns its file.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

/// How long a socket that was found may take to accept a connection before it counts as in use.
const PROBE: Duration = Duration::from_secs(1);

/// A listening Unix domain socket, mode 0600, whose file goes with it.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that another's file at the same path is left alone.
    file: (u64, u64),
}

impl UnixSocket {
    /// Binds, in place of a socket file that nobody listens on.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) when somebody listens there or the file is not a socket, and what the
    /// operating system says.
    pub(crate) async fn bind(path: PathBuf) -> io::Result<Self> {
        clear(&path).await?;
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // On Linux the file gets the mode of the socket's own inode (unix(7)), so nobody can connect between bind and chmod.
        let inode = fs::File::from(OwnedFd::from(socket.try_clone()?));
        inode.set_permissions(fs::Permissions::from_mode(0o600))?;
        socket.bind(&socket2::SockAddr::unix(&path)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        socket.listen(crate::net::BACKLOG)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
        let file = identity(&path)?;
        Ok(Self { listener, path, file })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Removes a socket file that nobody listens on.
async fn clear(path: &Path) -> io::Result<()> {
    let in_use = |why: String| io::Error::new(io::ErrorKind::AddrInUse, why);
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(why),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(in_use(format!("{} exists and is not a socket", path.display())));
        }
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(why)) if why.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(Err(why)) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(why)) => Err(in_use(format!("cannot tell whether {} is in use: {why}", path.display()))),
        Ok(Ok(_)) | Err(_) => Err(in_use(format!("somebody listens on {}", path.display()))),
    }
}
