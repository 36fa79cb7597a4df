// What secrets are read from. First byte: Docker's config.json, Kubernetes' pull secrets, what a credential
// helper printed, what a token server answered. Errors are one printable line.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "registry/credentials.h"
#include "registry/internal/credential_helper.h"
#include "registry/internal/token_request.h"

namespace {

using namespace lazyblob;  // NOLINT: the program is short

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

void Check(const absl::Status& status) {
  const absl::string_view text = status.message();
  Require(text.size() < 10'000);
  Require(std::none_of(text.begin(), text.end(), [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; }));
}

void LookUp(const registry::CredentialsProvider& provider) {
  for (const char* host : {"docker.io", "registry.example:5000", "[::1]:5000"}) {
    Check(provider.LookupFor(host, "team/app").status());
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  setenv("PATH", "/nonexistent", 1);  // no helper is ever started
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  base::UniqueFd file;
  if (data[0] % 4 < 2) {
    file = base::UniqueFd(memfd_create("config", MFD_CLOEXEC));
    Require(file.valid() && fchmod(file.get(), 0600) == 0);
    Require(base::WriteFull(file.get(), {data + 1, size - 1}).ok());
  }
  const std::string path = absl::StrCat("/proc/self/fd/", file.get());
  switch (data[0] % 4) {
    case 0:
      LookUp(*registry::DockerConfigCredentials(path));
      break;
    case 1:
      LookUp(*registry::KubernetesSecretCredentials(
          path, [](absl::string_view line) { Require(line.find('\n') == absl::string_view::npos); }));
      break;
    case 2:
      Check(registry::internal::ParseHelperOutput(text).status());
      break;
    default: {
      const auto answer = registry::internal::ParseTokenAnswer(text);
      Check(answer.status());
      if (answer.ok()) Require(!answer->token.empty() && answer->lifetime > absl::ZeroDuration());
    }
  }
  return 0;
}
