#pragma once

// LearnedBlobs between a content store, containerd's namespaces and registries that a test holds in its
// hands.

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "contentservice/lazy_blobs.h"
#include "contentservice/learned_images.h"
#include "tests/contentservice/image_documents.h"
#include "tests/support/gate.h"
#include "tests/support/gated_blob_source.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentservice {

using support::kPatience;
inline constexpr char kLabel[] = "containerd.io/distribution.source.registry.test";

// Whole blobs in memory.
class FakeContent final : public Content {
 public:
  LazyBlobs* lazy = nullptr;
  std::function<void()> on_list;
  base::Digest Put(const std::string& bytes) {
    absl::MutexLock lock(&mutex_);
    blobs_[DigestOf(bytes)] = bytes;
    return DigestOf(bytes);
  }
  void Remove(const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    blobs_.erase(digest);
  }
  absl::Status Read(const base::Digest& digest, uint64_t, uint64_t, ReadSink sink,
                    const std::shared_ptr<base::CancelToken>&) override {
    std::string bytes;
    {
      absl::MutexLock lock(&mutex_);
      if (!blobs_.contains(digest)) return absl::NotFoundError("no such blob");
      bytes = blobs_[digest];
    }
    return sink({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  }
  absl::StatusOr<std::string> HeldFile(const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    if (!blobs_.contains(digest)) return absl::NotFoundError("no such blob");
    return std::string("somewhere");
  }

  absl::StatusOr<Info> GetInfo(const base::Digest& digest) override {
    {
      absl::MutexLock lock(&mutex_);
      if (auto found = blobs_.find(digest); found != blobs_.end()) {
        Info info;
        info.digest = digest;
        info.size = found->second.size();
        return info;
      }
    }
    return lazy->Find(digest);
  }
  absl::StatusOr<Info> Update(const Info&, const std::vector<std::string>&) override { return Unused(); }
  absl::Status List(const std::vector<std::string>&,
                    absl::FunctionRef<absl::Status(const Info&)> visit) override {
    if (on_list) on_list();
    absl::MutexLock lock(&mutex_);
    for (const auto& [digest, bytes] : blobs_) {
      Info info;
      info.digest = digest;
      info.size = bytes.size();
      RETURN_IF_ERROR(visit(info));
    }
    return absl::OkStatus();
  }
  absl::Status Delete(const base::Digest&) override { return Unused(); }
  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(const std::string&, uint64_t,
                                                     const base::Digest&) override {
    return Unused();
  }
  absl::StatusOr<IngestStatus> Status(const std::string&) override { return Unused(); }
  absl::StatusOr<std::vector<IngestStatus>> ListStatuses(const std::vector<std::string>&) override {
    return Unused();
  }
  absl::Status Abort(const std::string&) override { return Unused(); }
  absl::StatusOr<size_t> Adopt(const std::string&, const std::vector<base::Digest>&) override {
    return Unused();
  }

 private:
  static absl::Status Unused() { return absl::UnimplementedError("not for lazy blobs"); }
  absl::Mutex mutex_;
  std::map<base::Digest, std::string> blobs_ ABSL_GUARDED_BY(mutex_);
};

// What containerd's namespaces hold.
class FakeNamespaces final : public Namespaces {
 public:
  void Put(const std::string& name_space, const base::Digest& digest, const Labels& labels) {
    absl::MutexLock lock(&mutex_);
    held_[name_space][digest] = labels;
  }
  void set_down(bool down) {
    absl::MutexLock lock(&mutex_);
    down_ = down;
  }
  // While it is there all the same.
  void set_drops_fail(bool fail) {
    absl::MutexLock lock(&mutex_);
    drops_fail_ = fail;
  }
  bool Holds(const std::string& name_space, const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    return held_[name_space].contains(digest);
  }
  Labels LabelsOf(const std::string& name_space, const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    return held_[name_space][digest];
  }
  size_t questions() {
    absl::MutexLock lock(&mutex_);
    return questions_;
  }
  // Waits until the namespaces are as `what` wants them.
  bool Await(const std::function<bool(FakeNamespaces&)>& what) {
    const absl::Time end = absl::Now() + kPatience;
    while (!what(*this)) {
      const size_t before = questions();
      absl::MutexLock lock(&mutex_);
      const auto more = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return questions_ > before; };
      mutex_.AwaitWithTimeout(absl::Condition(&more), absl::Milliseconds(20));
      if (absl::Now() > end) return false;
    }
    return true;
  }

  absl::StatusOr<std::vector<std::string>> List() override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    std::vector<std::string> names;
    for (const auto& [name, blobs] : held_) names.push_back(name);
    return names;
  }
  absl::StatusOr<Labels> BlobLabels(const std::string& name_space, const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    auto found = held_[name_space].find(digest);
    if (found == held_[name_space].end()) return absl::NotFoundError("not held");
    return found->second;
  }
  absl::Status Hold(const std::string& name_space, const oci::Descriptor& blob,
                    const Labels& labels) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    held_[name_space][blob.digest] = labels;
    return absl::OkStatus();
  }
  absl::Status Drop(const std::string& name_space, const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_ || drops_fail_) return absl::UnavailableError("containerd is not there");
    held_[name_space].erase(digest);
    return absl::OkStatus();
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::map<base::Digest, Labels>> held_ ABSL_GUARDED_BY(mutex_);
  bool down_ ABSL_GUARDED_BY(mutex_) = false;
  bool drops_fail_ ABSL_GUARDED_BY(mutex_) = false;
  size_t questions_ ABSL_GUARDED_BY(mutex_) = 0;
};

class LazyBlobsTest : public ::testing::Test {
 protected:
  LazyBlobsTest() { Open(); }
  ~LazyBlobsTest() override { Close(); }

  void Open() {
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("layers");
    auto opened = contentstore::ContentStore::Open(std::move(store));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
    LearnedBlobsOptions options;
    options.root = directory_.path();
    options.store = store_.get();
    options.namespaces = &namespaces_;
    options.sources = [this](absl::string_view name) -> std::shared_ptr<contentstore::BlobSource> {
      EXPECT_TRUE(absl::StartsWith(name, "registry:registry.test")) << name;
      absl::MutexLock lock(&mutex_);
      asked_sources_.emplace_back(name);
      return source_;
    };
    options.hosts = [this](const std::string&) { return hosts_; };
    options.check = [this](const std::string& reference, const std::shared_ptr<base::CancelToken>& cancel) {
      Answer answer;
      {
        absl::MutexLock lock(&mutex_);
        checked_.push_back(reference);
        answer = answer_;
        for (const std::string& host : good_hosts_) {
          if (!answer && absl::StartsWith(reference, host + "/")) return absl::OkStatus();
        }
      }
      return answer ? answer(cancel) : absl::NotFoundError("no such manifest");
    };
    options.find_patience = find_patience_;
    options.learn_patience = learn_patience_;
    auto blobs = LearnedBlobs::Open(std::move(options));
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = *std::move(blobs);
    content_.lazy = blobs_.get();
    blobs_->Start(&content_);
  }
  void Close() {
    blobs_.reset();
    store_.reset();
  }
  void Reopen() {
    Close();
    Open();
  }

  // What a registry answers when it is asked for a manifest.
  using Answer = std::function<absl::Status(const std::shared_ptr<base::CancelToken>& cancel)>;
  void SetAnswer(Answer answer) {
    absl::MutexLock lock(&mutex_);
    answer_ = std::move(answer);
  }

  // As containerd's clients do: manifest, its labels, then the config.
  base::Digest Commit(const std::string& bytes, const std::string& name_space = "default") {
    const base::Digest digest = content_.Put(bytes);
    blobs_->Committed(digest, bytes.size(), name_space + "/7/some-ref");
    return digest;
  }
  base::Digest Pull(const std::vector<std::string>& layers, const std::string& repository = "app",
                    const std::string& name_space = "default") {
    const std::string config = Config(layers);
    const base::Digest manifest = Commit(Manifest(config, layers), name_space);
    namespaces_.Put(name_space, manifest, {{kLabel, repository}});
    Commit(config, name_space);
    return manifest;
  }
  bool Known(const std::string& layer) { return blobs_->Find(DigestOf(layer)).ok(); }
  bool Listed(const std::string& layer) {
    for (const Info& info : blobs_->Listed()) {
      if (info.digest == DigestOf(layer)) return true;
    }
    return false;
  }
  bool AwaitListed(const std::string& layer) {
    return namespaces_.Await([&](FakeNamespaces&) { return Listed(layer); });
  }
  static base::Digest ChainOf(const std::vector<std::string>& layers) {
    std::vector<base::Digest> diff_ids;
    for (const std::string& layer : layers) diff_ids.push_back(DigestOf("tar of " + layer));
    return ChainIds(diff_ids).back();
  }

  support::TempDir directory_;
  FakeContent content_;
  FakeNamespaces namespaces_;
  std::shared_ptr<support::GatedBlobSource> source_ =
      std::make_shared<support::GatedBlobSource>("registry:registry.test/app");
  std::vector<std::string> hosts_ = {"registry.test"};
  absl::Duration find_patience_ = kPatience;
  absl::Duration learn_patience_ = kPatience;
  absl::Mutex mutex_;
  std::vector<std::string> good_hosts_ ABSL_GUARDED_BY(mutex_) = {"registry.test"};
  Answer answer_ ABSL_GUARDED_BY(mutex_);  // instead of good_hosts_
  std::vector<std::string> checked_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> asked_sources_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<LearnedBlobs> blobs_;
};

}  // namespace lazyblob::contentservice
