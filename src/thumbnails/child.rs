//! Makes one thumbnail, in a process of its own: reads a picture from standard input and writes a small
//! JPEG to standard output.
//!
//! Pictures come from other devices, and decoders have bugs. So this process
//! N1  limits its own memory, time, files and processes before it reads the first byte;
//! N2  refuses a picture with more than [`PIXELS_MAX`] pixels before it decodes one;
//! N3  on Linux, gives up all system calls before it decodes, except those for memory, for reading and
//!     writing open files, and for exiting: it can open no file, connection or process. On other
//!     systems only the limits protect.
//!
//! The parent limits its time as well, and uses its output only if it exits with success.

use std::io::{Cursor, Read as _, Write as _};

use anyhow::{Context as _, bail};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits, Rgb, RgbImage};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::core::limits::THUMBNAIL_BYTES_MAX;

/// The largest picture that is read.
pub const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The longest side of a thumbnail: a tile of a grid on a dense screen.
const SIDE: u32 = 384;

/// The most pixels: a camera of 100 megapixels. Decoded they are 400 MB.
const PIXELS_MAX: u64 = 100_000_000;

/// The memory of the process: a decoded picture, what it was decoded from, and the program.
const MEMORY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The processor time, in seconds.
const CPU_SECONDS_MAX: u64 = 10;

/// What is drawn behind transparent pictures.
const BACKGROUND: Rgb<u8> = Rgb([0xf4, 0xf4, 0xf2]);

const JPEG_QUALITY: u8 = 82;

/// Makes a thumbnail of what is on standard input.
///
/// # Errors
/// It is no picture of a known format, or too large a one.
pub fn make() -> anyhow::Result<()> {
    limit()?;
    let mut input = Vec::new();
    std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut input)?;
    if input.len() as u64 > INPUT_BYTES_MAX {
        bail!("the picture has more than {INPUT_BYTES_MAX} bytes");
    }
    confine()?;
    let thumbnail = thumbnail(&input)?;
    let mut output = std::io::stdout().lock();
    output.write_all(&thumbnail)?;
    output.flush()?;
    Ok(())
}

fn limit() -> anyhow::Result<()> {
    let limits = [
        (Resource::As, MEMORY_BYTES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Fsize, THUMBNAIL_BYTES_MAX),
        (Resource::Core, 0),
        (Resource::Nofile, 16),
        (Resource::Nproc, 0),
    ];
    for (resource, most) in limits {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).with_context(|| format!("limiting {resource:?}"))?;
    }
    Ok(())
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn confine() -> anyhow::Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    /// The system calls that stay: memory, open files, locks within the process, and exiting.
    const ALLOWED: [i64; 19] = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let filter = SeccompFilter::new(
        ALLOWED.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn confine() -> anyhow::Result<()> {
    Ok(())
}

/// A small JPEG of a picture.
fn thumbnail(input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut reader = ImageReader::new(Cursor::new(input)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY_BYTES_MAX / 2);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        bail!("the picture has {width} by {height} pixels, expected at most {PIXELS_MAX}");
    }
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?.thumbnail(SIDE, SIDE);
    picture.apply_orientation(orientation);
    let mut output = Vec::new();
    JpegEncoder::new_with_quality(&mut output, JPEG_QUALITY).encode_image(&flat(&picture))?;
    Ok(output)
}

/// The picture on a plain background.
fn flat(picture: &DynamicImage) -> RgbImage {
    let mut flat = RgbImage::new(picture.width(), picture.height());
    for (to, from) in flat.pixels_mut().zip(picture.to_rgba8().pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let over = |colour: u32, behind: u8| {
            let mixed = (colour * alpha + u32::from(behind) * (255 - alpha)) / 255;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        };
        let [behind_red, behind_green, behind_blue] = BACKGROUND.0;
        *to = Rgb([over(red, behind_red), over(green, behind_green), over(blue, behind_blue)]);
    }
    flat
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use image::ImageFormat;

    use super::*;

    fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 128]));
        DynamicImage::from(picture).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pictures_of_every_format_become_small_jpegs() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP] {
            let small = thumbnail(&encoded(800, 400, format)).unwrap();
            let small = image::load_from_memory_with_format(&small, ImageFormat::Jpeg).unwrap();
            assert_eq!((small.width(), small.height()), (SIDE, SIDE / 2), "{format:?}");
        }
    }

    #[test]
    fn broken_and_enormous_pictures_are_errors() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP] {
            let whole = encoded(64, 64, format);
            assert!(thumbnail(&whole[..20]).is_err(), "{format:?}");
        }
        assert!(thumbnail(b"").is_err());
        assert!(thumbnail(b"<svg xmlns='http://www.w3.org/2000/svg'/>").is_err());
        // A PNG whose header claims 60,000 by 60,000 pixels.
        let mut bomb = encoded(1, 1, ImageFormat::Png);
        bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let refused = thumbnail(&bomb).unwrap_err().to_string();
        assert!(refused.contains("60000") || refused.contains("limit"), "{refused}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
            })
        })
    }
}
