#include "daemon/cli_leases.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "daemon/control_client.h"

namespace lazyblob::daemon {
namespace {

void Print(const std::vector<v1::Lease>& leases, CliIo io) {
  for (const v1::Lease& lease : leases) {
    uint64_t bytes = 0;
    for (const v1::Blob& layer : lease.layers()) bytes += layer.size();
    const std::string made =
        absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(lease.created()), absl::UTCTimeZone());
    io.out << absl::StrFormat("%-32s %s  %3d lazy layers  %11d bytes  %s\n", lease.name(), made,
                              lease.layers_size(), bytes, lease.has_image() ? lease.image().digest() : "-");
  }
}

absl::Status PrintJson(const std::vector<v1::Lease>& leases, CliIo io) {
  v1::ListLeasesResponse list;
  list.mutable_leases()->Add(leases.begin(), leases.end());
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(list, &json, options).ok()) {
    return absl::InternalError("a lease that is not UTF-8");
  }
  io.out << json;
  return absl::OkStatus();
}

}  // namespace

void AddLeasesCommand(CLI::App* app, LeasesArguments* arguments, std::function<void()> chosen) {
  CLI::App* leases =
      app->add_subcommand("leases", "what is kept for exports to store:NAME and build workers");
  leases->require_subcommand(0, 1);
  leases->add_subcommand("rm", "let go of what a lease keeps")
      ->add_option("NAME", arguments->remove)
      ->required();
  leases->callback(std::move(chosen));
}

absl::Status RunLeasesCommand(const LeasesArguments& arguments, const std::string& root, bool json,
                              CliIo io) {
  if (geteuid() != 0) return absl::PermissionDeniedError("must run as root: the daemon serves root only");
  ASSIGN_OR_RETURN(auto client, ControlClient::ConnectOrStart(root));
  if (!arguments.remove.empty()) return client->ReleaseLease(arguments.remove);
  ASSIGN_OR_RETURN(const std::vector<v1::Lease> leases, client->Leases());
  if (json) return PrintJson(leases, io);
  Print(leases, io);
  return absl::OkStatus();
}

}  // namespace lazyblob::daemon
