// A CRI image client, for tests/e2e:  cri_client SOCKET pull IMAGE | status IMAGE | list
// pull sends the user name and password of $CRI_AUTH ("user:password"), if set. One line per answer, 1 on
// errors.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "proto/cri.grpc.pb.h"

namespace {

namespace api = runtime::v1;

int End(const grpc::Status& status) {
  if (status.ok()) return 0;
  fprintf(stderr, "cri_client: %d: %s\n", status.error_code(), status.error_message().c_str());
  return 1;
}

int Pull(api::ImageService::Stub& stub, grpc::ClientContext* context, const std::string& image) {
  api::PullImageRequest request;
  request.mutable_image()->set_image(image);
  const char* auth = getenv("CRI_AUTH");
  std::string text = auth != nullptr ? auth : "";
  if (size_t colon = text.find(':'); colon != std::string::npos) {
    request.mutable_auth()->set_username(text.substr(0, colon));
    request.mutable_auth()->set_password(text.substr(colon + 1));
  }
  api::PullImageResponse response;
  grpc::Status status = stub.PullImage(context, request, &response);
  if (status.ok()) printf("%s\n", response.image_ref().c_str());
  return End(status);
}

int Status(api::ImageService::Stub& stub, grpc::ClientContext* context, const std::string& image) {
  api::ImageStatusRequest request;
  request.mutable_image()->set_image(image);
  api::ImageStatusResponse response;
  grpc::Status status = stub.ImageStatus(context, request, &response);
  if (status.ok()) printf("%s\n", response.image().ShortDebugString().c_str());
  return End(status);
}

int List(api::ImageService::Stub& stub, grpc::ClientContext* context) {
  api::ListImagesResponse response;
  grpc::Status status = stub.ListImages(context, {}, &response);
  for (const api::Image& image : response.images()) printf("%s\n", image.ShortDebugString().c_str());
  return End(status);
}

}  // namespace

int main(int argc, char** argv) {
  std::string command = argc > 2 ? argv[2] : "";
  if (argc != (command == "list" ? 3 : 4)) {
    fprintf(stderr, "usage: cri_client SOCKET pull IMAGE | status IMAGE | list\n");
    return 2;
  }
  auto channel = grpc::CreateChannel(std::string("unix:") + argv[1], grpc::InsecureChannelCredentials());
  auto stub = api::ImageService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(4));
  if (command == "pull") return Pull(*stub, &context, argv[3]);
  if (command == "status") return Status(*stub, &context, argv[3]);
  return List(*stub, &context);
}
