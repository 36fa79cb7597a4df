#include "daemon/cli_doctor.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/config.h"
#include "daemon/containerd_client.h"
#include "daemon/control_client.h"
#include "daemon/doctor.h"
#include "fuse/server.h"

namespace lazyblob::daemon {
namespace {

constexpr uint64_t kMaxText = 4 << 20;

// Empty where there is no such file.
std::string Text(const std::string& path) {
  absl::StatusOr<std::string> text = base::ReadFile(path, kMaxText);
  return text.ok() ? *std::move(text) : "";
}

absl::StatusOr<ContainerdFacts> AskContainerd(const DoctorArguments& arguments) {
  ContainerdFacts facts;
  ASSIGN_OR_RETURN(auto client, ContainerdClient::Connect(arguments.containerd, "default", nullptr));
  ASSIGN_OR_RETURN(facts.version, client->Version());
  ASSIGN_OR_RETURN(facts.plugins, client->Plugins());
  facts.config = Text(arguments.containerd_config);
  return facts;
}

absl::StatusOr<control::v1::StatusResponse> AskDaemon(const std::string& root) {
  ASSIGN_OR_RETURN(auto client, ControlClient::Connect(root));
  return client->Status("", /*probe=*/true);
}

}  // namespace

absl::Status RunDoctor(const DoctorArguments& arguments, CliIo io) {
  absl::StatusOr<Config> config = LoadConfig(arguments.config, /*required=*/false);
  Config effective = config.ok() ? *config : Config{};
  if (!arguments.root.empty()) effective.root = arguments.root;
  const uid_t user = geteuid();
  utsname machine{};
  uname(&machine);
  std::string modules = absl::StrCat("/lib/modules/", machine.release);

  Findings findings;
  auto add = [&](Findings more) {
    for (Finding& finding : more) findings.push_back(std::move(finding));
  };
  add(CheckUser(user));
  add(CheckConfig(config));
  add(CheckKernel(machine.release, Text("/proc/filesystems"),
                  Text(modules + "/modules.dep") + Text(modules + "/modules.builtin")));
  add(CheckRequestLimit(fuse::KernelRequestLimit(), effective.fuse.read_deadline));
  add(CheckStateRoot(effective.root, user));
  add(CheckDaemon(AskDaemon(effective.root), effective.root));
  add(CheckSocket(effective.address, user));
  const absl::StatusOr<ContainerdFacts> facts = AskContainerd(arguments);
  add(CheckContainerd(facts, arguments.snapshotter, effective.address));
  add(CheckContentStore(facts, effective.content.enabled, effective.address));
  add(CheckPropagation(NamespaceBehind(effective.address), NamespaceBehind(arguments.containerd),
                       effective.root));

  if (arguments.json) {
    io.out << ToJson(findings).dump(2) << "\n";
  } else {
    PrintFindings(findings, io.out);
  }
  if (!HasFailure(findings)) return absl::OkStatus();
  size_t failed = 0;
  for (const Finding& finding : findings) failed += finding.severity == Severity::kFail ? 1 : 0;
  return absl::FailedPreconditionError(absl::StrCat(failed, " of ", findings.size(), " checks failed"));
}

}  // namespace lazyblob::daemon
