// What a sequential reader of the content service pays per call, over its socket: Info, and Read of 32 KiB as
// containerd asks for it (it makes both for each step of its clients), of a held blob and of a lazy one whose
// bytes are there. The server is a process of its own: its CPU time and its context switches say more than
// the clock on a machine that does other things, too.
//
//   content_bench [--smoke]      prints one line per figure

#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "containerd/grpc_server.h"
#include "contentservice/content_service.h"
#include "contentstore/content_store.h"
#include "tests/contentservice/suite/wire_client.h"
#include "tests/support/gated_blob_source.h"
#include "tests/support/temp_dir.h"

namespace {

namespace cs = lazyblob::contentservice;
namespace store = lazyblob::contentstore;
using lazyblob::base::Digest;

constexpr size_t kStep = 32 << 10;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "content_bench: %s\n", status.ToString().c_str());
  exit(1);
}

std::string MakeBlob(size_t size, uint32_t seed) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>((seed = seed * 1664525u + 1013904223u) >> 24);
  return bytes;
}

// One lazy blob over a real content store.
class LazyBlob final : public cs::LazyBlobs {
 public:
  LazyBlob(const std::string& root, const std::string& bytes) {
    store::ContentStoreOptions options;
    options.root = root;
    auto opened = store::ContentStore::Open(options);
    Must(opened.status());
    store_ = *std::move(opened);
    auto source = std::make_shared<lazyblob::support::GatedBlobSource>();
    store::DescriptorHandler handler;
    handler.descriptor.digest = source->PutBlob(bytes);
    handler.descriptor.size = bytes.size();
    handler.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    handler.sources = {source};
    auto layer = store_->AddHandler(handler);
    Must(layer.status());
    layer_ = *std::move(layer);
  }
  absl::StatusOr<cs::Info> Find(const Digest& digest) override {
    if (digest != layer_->descriptor().digest) return absl::NotFoundError("not lazy");
    cs::Info info;
    info.digest = digest;
    info.size = layer_->descriptor().size;
    return info;
  }
  std::optional<cs::Info> TryFind(const Digest& digest) override {
    auto found = Find(digest);
    if (!found.ok()) return std::nullopt;
    return *std::move(found);
  }
  bool TryRead(const Digest&, uint64_t offset, uint64_t size, cs::ReadRoom room) override {
    const auto out = room(size == 0 ? layer_->descriptor().size - offset : size);
    return !out.empty() && store_->TryReadBlob(*layer_, offset, out);
  }
  std::vector<cs::Info> Listed() override { return {}; }
  absl::Status SetLabels(const Digest&, const cs::Labels&, absl::Time) override { return absl::OkStatus(); }
  absl::Status Forget(const Digest&) override { return absl::NotFoundError("not lazy"); }
  absl::StatusOr<size_t> Read(const Digest&, uint64_t offset, absl::Span<uint8_t> out,
                              const std::shared_ptr<lazyblob::base::CancelToken>& cancel) override {
    store::FetchContext context;
    context.cancel = cancel;
    return store_->ReadBlob(*layer_, offset, out, context);
  }
  void Committed(const Digest&, uint64_t, const std::string&) override {}
  void Deleted(const Digest&) override {}

 private:
  std::unique_ptr<store::ContentStore> store_;
  std::shared_ptr<store::LazyLayer> layer_;
};

struct Usage {
  double cpu_us;
  double switches;
};

// Serves; answers each byte on `control` with what it has used so far, until there are no more.
void Serve(const std::string& directory, const std::string& lazy_bytes, int control) {
  LazyBlob lazy(directory + "/store", lazy_bytes);
  cs::ContentOptions options;
  options.root = directory + "/content";
  options.lazy = &lazy;
  auto content = cs::Content::Open(options);
  Must(content.status());
  auto service = cs::ContentService::Create(content->get());
  auto server = lazyblob::containerd::GrpcServer::Start(directory + "/run/s.sock", {service->service()});
  Must(server.status());
  for (char byte; write(control, "!", 1) == 1 && read(control, &byte, 1) == 1;) {
    rusage used;
    getrusage(RUSAGE_SELF, &used);
    auto us = [](const timeval& time) { return double(time.tv_sec) * 1e6 + double(time.tv_usec); };
    const Usage usage = {us(used.ru_utime) + us(used.ru_stime), double(used.ru_nvcsw + used.ru_nivcsw)};
    if (write(control, &usage, sizeof(usage)) != sizeof(usage)) break;
  }
}

class Bench {
 public:
  Bench(cs::suite::WireClient* client, int control) : client_(*client), control_(control) {}

  void Print(const char* what, int calls, const std::function<void(int)>& call) {
    const Usage before = Used();
    const absl::Time start = absl::Now();
    for (int i = 0; i < calls; ++i) call(i);
    const double us = absl::ToDoubleMicroseconds(absl::Now() - start) / calls;
    const Usage after = Used();
    printf("%-40s %7.1f us of CPU   %5.2f context switches   %7.1f us   n %d\n", what,
           (after.cpu_us - before.cpu_us) / calls, (after.switches - before.switches) / calls, us, calls);
  }
  void ReadInSteps(const char* what, const std::string& bytes) {
    const std::string digest = Digest::Of(bytes).ToString();
    Must(client_.Read(digest).status());  // it is there from now on
    const int calls = static_cast<int>(bytes.size() / kStep);
    Print(absl::StrCat("Read of 32 KiB, ", what).c_str(), calls, [&](int i) {
      const size_t offset = static_cast<size_t>(i) * kStep;
      auto read = client_.Read(digest, static_cast<int64_t>(offset), kStep);
      Must(read.status());
      if (bytes.compare(offset, kStep, *read) != 0) Must(absl::DataLossError("other bytes"));
    });
    Print(absl::StrCat("Info, ", what).c_str(), calls, [&](int) { Must(client_.GetInfo(digest).status()); });
    Print(absl::StrCat("Read of ", bytes.size() >> 10, " KiB, ", what).c_str(), 8,
          [&](int) { Must(client_.Read(digest).status()); });
  }

 private:
  Usage Used() {
    Usage usage;
    char ready;
    if (write(control_, "?", 1) != 1 || read(control_, &usage, sizeof(usage)) != sizeof(usage) ||
        read(control_, &ready, 1) != 1) {
      Must(absl::UnavailableError("the server is gone"));
    }
    return usage;
  }

  cs::suite::WireClient& client_;
  const int control_;
};

int Run(bool smoke) {
  lazyblob::support::TempDir dir;
  const size_t size = smoke ? 1 << 20 : 64 << 20;
  const std::string held = MakeBlob(size, 1), lazy = MakeBlob(size, 2);
  int control[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control) != 0) return 1;
  const pid_t server = fork();  // before there is any thread
  if (server == 0) {
    close(control[0]);
    Serve(dir.File(""), lazy, control[1]);
    _exit(0);
  }
  close(control[1]);
  char ready;
  if (server < 0 || read(control[0], &ready, 1) != 1) Must(absl::UnavailableError("no server"));
  {
    cs::suite::WireClient client(dir.File("run") + "/s.sock");
    auto writer = client.OpenWriter("held", size, "");
    Must(writer.status());
    for (size_t at = 0; at < size; at += 1 << 20) Must((*writer)->Write(held.substr(at, 1 << 20)));
    Must((*writer)->Commit(size, Digest::Of(held).ToString()));
    Bench bench(&client, control[0]);
    bench.ReadInSteps("held", held);
    bench.ReadInSteps("lazy", lazy);
  }
  close(control[0]);
  int status = 1;
  waitpid(server, &status, 0);
  return status;
}

}  // namespace

int main(int argc, char** argv) { return Run(argc > 1 && strcmp(argv[1], "--smoke") == 0); }
