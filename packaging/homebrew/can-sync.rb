# The release workflow fills in the version and the checksum of the source.
class CanSync < Formula
  desc "Keeps the files of your devices the same, without a server"
  homepage "https://example.org/can-sync"
  url "https://example.org/can-sync/archive/v@VERSION@.tar.gz"
  sha256 "@SHA256@"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args
    generate_completions_from_executable(bin/"can-sync", "completions")
    system bin/"can-sync", "man", buildpath/"man"
    man1.install Dir["man/*.1"]
  end

  service do
    run [opt_bin/"can-sync", "up"]
    keep_alive true
    process_type :background
    log_path var/"log/can-sync.log"
    error_log_path var/"log/can-sync.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/can-sync version")
    assert_match "no agent is running", shell_output("#{bin}/can-sync --home #{testpath}/home status 2>&1", 3)
  end
end
