#include "daemon/cli_artifact.h"

#include <utility>

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "exporter/artifact.h"
#include "oci/manifest.h"

namespace lazyblob::daemon {
namespace {

using Command = ArtifactArguments::Command;

absl::StatusOr<v1::ExportRequest> PushOfArguments(const ArtifactArguments& arguments) {
  v1::ExportRequest request;
  for (const std::string& reference : arguments.destinations) request.add_destinations(reference);
  v1::Artifact* artifact = request.mutable_artifact();
  for (const std::string& layer : arguments.layers) {
    ASSIGN_OR_RETURN(const exporter::ArtifactSource source, exporter::ParseArtifactSource(layer));
    v1::ArtifactLayer* added = artifact->add_layers();
    added->set_platform(source.platform ? source.platform->ToString() : "any");
    // A colon in it begins no TARGET.
    added->set_source(absl::StrCat("dir:", source.path, absl::StrContains(source.path, ":") ? ":" : ""));
  }
  artifact->set_type(arguments.type);
  artifact->set_subject(arguments.subject);
  for (const std::string& annotation : arguments.annotations) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(annotation, absl::MaxSplits('=', 1));
    if (parts.first.empty() || !absl::StrContains(annotation, '=')) {
      return absl::InvalidArgumentError(
          absl::StrCat("annotation \"", base::Printable(annotation.substr(0, 256)), "\" is not KEY=VALUE"));
    }
    (*artifact->mutable_annotations())[parts.first] = parts.second;
  }
  v1::Compression compression = v1::COMPRESSION_UNSPECIFIED;
  v1::Compression_Parse(absl::AsciiStrToUpper(arguments.request.compression), &compression);
  request.set_compression(compression);
  RETURN_IF_ERROR(AddSourceDateEpoch(&request));
  return request;
}

v1::ExportRequest PullOfArguments(const ArtifactArguments& arguments) {
  v1::ExportRequest request;
  v1::Image* image = request.add_images();
  image->set_base(arguments.source);
  image->set_artifact(true);
  image->set_all_platforms(arguments.all);
  image->set_platform(arguments.request.platform);
  request.add_destinations(absl::StrCat("dir:", arguments.directory));
  return request;
}

// "PLATFORM=REF" or "REF": names of images have no "=", directories of layouts may.
v1::ExportRequest AssemblyOfArguments(const ArtifactArguments& arguments) {
  v1::ExportRequest request;
  for (const std::string& reference : arguments.destinations) request.add_destinations(reference);
  for (const std::string& manifest : arguments.manifests) {
    v1::Image* image = request.add_images();
    const std::pair<std::string, std::string> parts = absl::StrSplit(manifest, absl::MaxSplits('=', 1));
    if (!parts.second.empty() && oci::ParsePlatform(parts.first).ok()) {
      image->set_platform(parts.first);
      image->set_base(parts.second);
    } else {
      image->set_base(manifest);
      image->set_all_platforms(true);
    }
  }
  request.set_index(arguments.request.append ? v1::INDEX_APPEND : v1::INDEX_NEW);
  return request;
}

void AddPush(CLI::App* artifact, ArtifactArguments* arguments, const std::function<void()>& chosen) {
  CLI::App* push = artifact->add_subcommand("push", "push directories as an artifact, a layer each");
  push->add_option("REF", arguments->destinations, "host[:port]/name[:tag] or oci:DIR[:tag]")->required();
  push->add_option("--layer", arguments->layers, "PLATFORM=DIR or any=DIR")
      ->required()
      ->allow_extra_args(false);
  push->add_option("--artifact-type", arguments->type, "media type");
  push->add_option("--subject", arguments->subject,
                   "REF of what it refers to; oci:DIR[:tag] if that is still to be pushed");
  push->add_option("--annotation", arguments->annotations, "KEY=VALUE")->allow_extra_args(false);
  push->add_option("--compression", arguments->request.compression)
      ->check(CLI::IsMember({"gzip", "zstd", "estargz", "zstdchunked", "none"}));
  AddRequestOptions(push, &arguments->request);
  push->callback([arguments, chosen] {
    arguments->command = Command::kPush;
    chosen();
  });
}

void AddPull(CLI::App* artifact, ArtifactArguments* arguments, const std::function<void()>& chosen) {
  CLI::App* pull = artifact->add_subcommand("pull", "unpack what an artifact has for a platform");
  pull->add_option("REF", arguments->source, "host[:port]/name[:tag|@digest] or oci:DIR[:tag]")->required();
  pull->add_option("DIR", arguments->directory, "directory that is absent or empty")->required();
  CLI::Option* platform = pull->add_option("--platform", arguments->request.platform,
                                           "os/arch[/variant]; default: this machine's");
  pull->add_flag("--all", arguments->all, "all platforms, in the artifact's order")->excludes(platform);
  AddRequestOptions(pull, &arguments->request);
  pull->callback([arguments, chosen] {
    arguments->command = Command::kPull;
    chosen();
  });
}

}  // namespace

void AddArtifactCommands(CLI::App* app, ArtifactArguments* arguments, std::function<void()> chosen) {
  CLI::App* artifact = app->add_subcommand("artifact", "push and pull directories of several platforms");
  artifact->require_subcommand(1);
  AddPush(artifact, arguments, chosen);
  AddPull(artifact, arguments, chosen);

  CLI::App* assemble = app->add_subcommand("assemble", "make one index of images of several platforms");
  assemble->add_option("DST", arguments->destinations, "host[:port]/name[:tag] or oci:DIR:tag")->required();
  assemble
      ->add_option("--manifest", arguments->manifests,
                   "[PLATFORM=]REF; of an index without PLATFORM: all it lists")
      ->required()
      ->allow_extra_args(false);
  assemble->add_flag("--append", arguments->request.append, "keep other platforms of the index that DST has");
  AddRequestOptions(assemble, &arguments->request);
  assemble->callback([arguments, chosen = std::move(chosen)] {
    arguments->command = Command::kAssemble;
    chosen();
  });
}

absl::StatusOr<v1::ExportRequest> MakeArtifactRequest(const ArtifactArguments& arguments,
                                                      const std::string& directory,
                                                      const std::string& docker_config) {
  v1::ExportRequest request;
  if (arguments.command == Command::kPush) {
    ASSIGN_OR_RETURN(request, PushOfArguments(arguments));
  } else {
    request =
        arguments.command == Command::kPull ? PullOfArguments(arguments) : AssemblyOfArguments(arguments);
  }
  RETURN_IF_ERROR(CompleteRequest(arguments.request, directory, docker_config, &request));
  return request;
}

absl::Status RunArtifactCommand(const ArtifactArguments& arguments, const std::string& root,
                                const std::string& docker_config, bool json, CliIo io) {
  auto make = [&](const std::string& directory) {
    return MakeArtifactRequest(arguments, directory, docker_config);
  };
  return RunRequest(make, arguments.request, root, json, io);
}

}  // namespace lazyblob::daemon
