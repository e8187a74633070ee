//! Descriptors over a unix stream socket (`SCM_RIGHTS`; unix(7)). Framing is the caller's affair.
//!
//! Invariant: every descriptor received is owned at once and close-on-exec; none leaks when the caller drops the result.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors in one message. The kernel takes 253 (`SCM_MAX_FD`); nobody here sends more than a few, and
/// beyond this limit the kernel closes what does not fit and [`receive`] fails with `EMSGSIZE`.
pub const FDS_MAX: usize = 16;

/// Sends bytes with descriptors attached to the first of them; returns how many bytes went. Without descriptors it is
/// a plain send. Never raises `SIGPIPE`.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
}

/// Room for one control message with [`FDS_MAX`] descriptors, aligned as the kernel's header wants it.
#[repr(C, align(8))]
struct Control([u8; 16 + 4 * FDS_MAX]);

/// Receives bytes into `buffer`, handing descriptors that came along to `fds`; returns the number of bytes, zero at
/// the end of the stream. `EMSGSIZE` when more than [`FDS_MAX`] came: those that fitted are closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], fds: &mut impl Extend<OwnedFd>) -> Result<usize, Errno> {
    receive_with(socket, buffer, fds, 0)
}

/// [`receive`] without waiting: `EAGAIN` where nothing is there yet, however the socket is set.
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8], fds: &mut impl Extend<OwnedFd>) -> Result<usize, Errno> {
    receive_with(socket, buffer, fds, libc::MSG_DONTWAIT)
}

fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut impl Extend<OwnedFd>,
    flags: libc::c_int,
) -> Result<usize, Errno> {
    // By hand, because nix's iterator refuses a truncated message without saying which descriptors it holds.
    let mut control = Control([0; _]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data, for which zero is valid; padding fields differ between C libraries.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the header points at one buffer and one control area of the given lengths, both alive and writable.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC | flags) };
    let count = Errno::result(count)?;
    let received = received_fds(&message);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMSGSIZE);
    }
    fds.extend(received);
    Ok(count.unsigned_abs())
}

#[allow(clippy::unnecessary_cast, reason = "cmsg_len is usize on glibc and u32 on musl")]
/// Takes ownership of the descriptors in a header that `recvmsg` has just filled.
fn received_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut received = Vec::new();
    // SAFETY: the header is as recvmsg left it; cmsg(3) is walked by its own macros, which stay inside msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: a header that the macros return lies whole within the control area, as does its data up to cmsg_len.
    while let Some(item) = unsafe { header.as_ref() } {
        if item.cmsg_level == libc::SOL_SOCKET && item.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN and CMSG_DATA only compute; the data are `bytes / 4` descriptors that the kernel has just
            // installed for this process and nobody else knows.
            unsafe {
                let bytes = item.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    received.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_with_the_first_byte_and_works() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(send(&left, b"hello", &[writer.as_fd()]).unwrap(), 5);
        drop(writer);
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut buffer = [0; 2];
        assert_eq!(receive(&right, &mut buffer, &mut fds).unwrap(), 2);
        assert_eq!((&buffer, fds.len()), (b"he", 1));
        let mut file = std::fs::File::from(fds.remove(0));
        file.write_all(b"through").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_the_end_is_zero() {
        let (left, right) = UnixStream::pair().unwrap();
        let many = vec![left.as_fd(); FDS_MAX + 4];
        send(&left, b"x", &many).unwrap();
        let mut fds: Vec<OwnedFd> = Vec::new();
        assert_eq!(receive(&right, &mut [0; 8], &mut fds), Err(Errno::EMSGSIZE));
        assert!(fds.is_empty());
        assert_eq!(receive_now(&right, &mut [0; 8], &mut fds), Err(Errno::EAGAIN));
        drop(left);
        assert_eq!(receive(&right, &mut [0; 8], &mut fds), Ok(0));
    }
}
